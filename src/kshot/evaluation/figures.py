"""Pictures of a run: how training went, and how well held-out classes are recognised."""

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kshot.evaluation.calibration import Bins
from kshot.printing import in_short_lines

_INCHES_OF_A_SETTING = 1.5  # so that the names of settings beside one another stay apart


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss and meta_val accuracy at every validation; `history` as in history.parquet."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(history["step"], history["loss"], marker=".")
    loss.set(xlabel="step", ylabel="meta-training loss", yscale="log")
    accuracy.plot(history["step"], 100 * history["val_accuracy"], marker=".")
    accuracy.set(xlabel="step", ylabel="meta_val accuracy, %")
    return figure


def accuracy_bars(results: list[dict[str, Any]]) -> Figure:
    """Accuracy with its interval in each setting, beside the baselines; `results` as in metrics.json."""
    figure = Figure(figsize=(max(8, _INCHES_OF_A_SETTING * len(results)), 3.8), layout="constrained")
    axes = figure.subplots()
    names = ["model", *results[0]["baselines"]]
    width, positions = 0.8 / len(names), np.arange(len(results))
    for number, name in enumerate(names):
        scores = [r if name == "model" else r["baselines"][name] for r in results]
        axes.bar(
            positions + (number - (len(names) - 1) / 2) * width,
            [100 * score["accuracy"] for score in scores],
            width,
            yerr=[100 * score["ci95"] for score in scores],
            capsize=3,
            label=name,
        )
    axes.set_xticks(positions, [f"{in_short_lines(r['title'])}\n{r['mode']}" for r in results])
    axes.set(ylabel="accuracy on held-out classes, %", ylim=(0, 105))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def shot_curves(results: list[dict[str, Any]]) -> Figure | None:
    """Accuracy against the number of shots, a line for each number of ways; None where no way has two shots."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        kind = re.sub("-way [0-9]+-shot", "-way", result["title"])  # with the sampler and its weights
        lines.setdefault(f"{kind}, {result['mode']}", []).append(result)
    for label, alike in lines.items():
        rows = sorted(alike, key=lambda r: r["k_shot"])
        if len(rows) > 1:
            _interval_line(axes, [r["k_shot"] for r in rows], rows, label=label)
    if not axes.lines:
        return None
    axes.set(xlabel="shots", ylabel="accuracy, %", xscale="log")
    shots = sorted({r["k_shot"] for r in results})
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.minorticks_off()
    axes.legend()
    return figure


def adaptation_curve(points: list[dict[str, Any]]) -> Figure:
    """Accuracy against inner steps, a line for each normalisation mode; `points` as in metrics.json."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for mode in dict.fromkeys(point["mode"] for point in points):
        rows = [point for point in points if point["mode"] == mode]
        _interval_line(axes, [row["steps"] for row in rows], rows, label=mode)
    axes.set(xlabel="inner steps", ylabel="accuracy, %")
    axes.legend()
    return figure


def reliability(plain: Bins, tempered: Bins) -> Figure:
    """Fraction right against confidence, before and after dividing the logits by the temperature."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], linestyle=":", color="grey")
    for bins, name in ((plain, "logits as they are"), (tempered, "as served, with the temperature of meta_val")):
        filled = bins.count > 0
        label = f"{name}: error {100 * bins.expected_calibration_error:.2f} points"
        axes.plot(100 * bins.confidence[filled], 100 * bins.accuracy[filled], marker="o", label=label)
    axes.set(xlabel="confidence, %", ylabel="right, %")
    axes.legend()
    return figure


def _interval_line(axes: Axes, x: list[int], rows: list[dict[str, Any]], *, label: str) -> None:
    y, half_width = (100 * np.array([row[key] for row in rows]) for key in ("accuracy", "ci95"))
    axes.errorbar(x, y, yerr=half_width, marker="o", capsize=3, label=label)


def class_distribution(classes: pd.DataFrame) -> Figure:
    """Share of classes at or below each accuracy, one line per setting; `classes` as in per_class.parquet."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for (setting, mode), rows in classes.groupby(["setting", "mode"], sort=False):
        ordered = np.sort(100 * rows["accuracy"].to_numpy())
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, share, where="post", label=f"{setting}, {mode}")
    axes.set(xlabel="accuracy of a class, %", ylabel="classes at or below, %")
    axes.legend()
    return figure
