"""Pictures of a run: how training went, and how well held-out classes are recognised."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


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
    """Accuracy with its interval in each setting, beside the pixel baseline; `results` as in metrics.json."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r['n_way']}-way {r['k_shot']}-shot\n{r['mode']}" for r in results]
    positions = np.arange(len(results))
    for offset, key, interval, label in (
        (-0.2, "accuracy", "ci95", "model"),
        (0.2, "baseline_accuracy", "baseline_ci95", "pixel nearest centroid"),
    ):
        heights = [100 * r[key] for r in results]
        axes.bar(positions + offset, heights, 0.4, yerr=[100 * r[interval] for r in results], capsize=3, label=label)
    axes.set_xticks(positions, labels)
    axes.set(ylabel="accuracy on held-out classes, %", ylim=(0, 105))
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def class_distribution(classes: pd.DataFrame) -> Figure:
    """Share of classes at or below each accuracy, one line a setting; `classes` as in per_class.parquet."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for (n_way, k_shot, mode), rows in classes.groupby(["n_way", "k_shot", "mode"], sort=False):
        ordered = np.sort(100 * rows["accuracy"].to_numpy())
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, share, where="post", label=f"{n_way}-way {k_shot}-shot, {mode}")
    axes.set(xlabel="accuracy of a class, %", ylabel="classes at or below, %")
    axes.legend()
    return figure
