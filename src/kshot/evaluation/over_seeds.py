"""How far the accuracy of one training spreads over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def over_seeds(
    seed: int, results: Sequence[Mapping[str, Any]], others: Mapping[int, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Mean and standard deviation of the accuracy over trainings, a row for each setting in each mode.

    `results` are those of `seed`, as in metrics.json, and `others` those of further seeds on the same episodes. Empty
    where there are no others.
    """
    if not others:
        return []
    found = {other: {(row["setting"], row["mode"]): row["accuracy"] for row in rows} for other, rows in others.items()}
    return [_row(seed, result, found) for result in results]


def _row(seed: int, result: Mapping[str, Any], others: Mapping[int, Mapping[tuple[str, str], float]]) -> dict[str, Any]:
    accuracies = {seed: result["accuracy"]}
    accuracies |= {other: rows[result["setting"], result["mode"]] for other, rows in others.items()}
    values = list(accuracies.values())
    return {
        "title": result["title"],
        "mode": result["mode"],
        "seeds": list(accuracies),
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
    }
