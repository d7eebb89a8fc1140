"""How far the accuracy of one training spreads over seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def over_seeds(metrics: Mapping[str, Any], others: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the accuracy over trainings, a row for each setting in each mode.

    `metrics` is the metrics.json of the evaluation, and `others` has those of further seeds on the same episodes.
    Empty where there are no others.
    """
    if not others:
        return []
    found = {
        seed: {(result["setting"], result["mode"]): result["accuracy"] for result in other["results"]}
        for seed, other in others.items()
    }
    return [_row(metrics["seed"], result, found) for result in metrics["results"]]


def _row(seed: int, result: Mapping[str, Any], others: Mapping[int, Mapping[tuple[str, str], float]]) -> dict[str, Any]:
    accuracies = {seed: result["accuracy"]}
    accuracies |= {other: rows[result["setting"], result["mode"]] for other, rows in others.items()}
    values = list(accuracies.values())
    return {
        "title": result["title"],
        "mode": result["mode"],
        **({"norm": result["norm"]} if "norm" in result else {}),
        "seeds": list(accuracies),
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
    }
