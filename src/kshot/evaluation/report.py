"""The page of an evaluation: the verdict, then sections that the report of the whole run shows too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.data.packed import PackedDataset
from kshot.evaluation.scorecard import lead_in
from kshot.evaluation.tables import Evaluation, SettingScores, confusion_table
from kshot.pages.page import figure_uri, markup, render

SECTIONS = "sections.html"


def write_report(folder: Path, found: Evaluation, dataset: PackedDataset, trained: Path, *, n_worst: int) -> None:
    """Write plots/, sections.html and report.html into `folder`; `trained` is the folder of the meta_train stage."""
    from kshot.evaluation.figures import (  # matplotlib, which whoever reads a report can do without
        accuracy_bars,
        adaptation_curve,
        class_distribution,
        reliability,
        shot_curves,
        training_curves,
    )

    figures = {
        "accuracy": accuracy_bars(found.metrics["results"]),
        "classes": class_distribution(found.classes),
        "calibration": reliability(found.headline.bins(tempered=False), found.headline.bins(tempered=True)),
    }
    history = pd.read_parquet(trained / "history.parquet")
    if history["step"].any():
        figures["training"] = training_curves(history)
    if (shots := shot_curves(found.metrics["results"])) is not None:
        figures["shots"] = shots
    if found.metrics["adaptation"]:
        figures["adaptation"] = adaptation_curve(found.metrics["adaptation"])
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=120)
    context = {"metrics": found.metrics, "headline": headline(found.metrics), "lead": lead_in(found.metrics)}
    sections = render(
        "evaluate_sections.html.j2",
        **context,
        training=json.loads((trained / "metrics.json").read_text(encoding="utf-8")),
        worst=_worst_classes(found, dataset, n_worst),
        groups=_groups(found),
        confusions=confusion_table(found.headline, dataset).head(n_worst).to_dict("records"),
        figures={name: figure_uri(figure) for name, figure in figures.items()},
    )
    (folder / SECTIONS).write_text(sections, encoding="utf-8")
    (folder / "report.html").write_text(
        render("evaluate.html.j2", **context, sections=markup(sections)), encoding="utf-8"
    )


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The first result of metrics.json in the mode that is served."""
    return next(result for result in metrics["results"] if result["mode"] == NON_TRANSDUCTIVE)


def _groups(found: Evaluation) -> list[dict[Any, Any]]:
    """Accuracy of each group of classes in the headline, the lowest first."""
    rows = _of(found.classes, found.headline)
    right = (rows["accuracy"] * rows["queries"]).groupby(rows["group"]).sum()
    queries = rows["queries"].groupby(rows["group"]).sum()
    table = pd.DataFrame({"accuracy": right / queries, "queries": queries, "classes": rows.groupby("group").size()})
    return [dict(row) for row in table.sort_values("accuracy").reset_index().to_dict("records")]


def _worst_classes(found: Evaluation, dataset: PackedDataset, n_worst: int) -> list[dict[Any, Any]]:
    """The classes with the lowest accuracy in the headline, each with a query that went wrong, as pictures."""
    headline = found.headline
    rows = _of(found.classes, headline).nsmallest(n_worst, "accuracy").to_dict("records")
    number_of = {name: number for number, name in enumerate(dataset.classes)}
    return [dict(row) | {"mistake": _mistake(headline, dataset, number_of[str(row["class"])])} for row in rows]


def _mistake(setting: SettingScores, dataset: PackedDataset, class_id: int) -> dict[str, Any] | None:
    """The first query of a class that was answered wrong: its support, itself, and what it was taken for."""
    wrong = (setting.indices.class_ids == class_id)[:, :, None] & ~setting.scores.right
    if not wrong.any():
        return None
    episode, way, query = (int(number) for number in np.argwhere(wrong)[0])
    taken_for = int(setting.scores.predicted[episode, way, query])
    indices = setting.indices
    return {
        "support": _pictures(dataset, indices.support[episode, way]),
        "query": _pictures(dataset, indices.query[episode, way, query : query + 1])[0],
        "other": _pictures(dataset, indices.support[episode, taken_for]),
        "taken_for": dataset.classes[indices.class_ids[episode, taken_for]],
    }


def _pictures(dataset: PackedDataset, items: np.ndarray) -> list[str]:
    return [dataset.item.show(item) for item in dataset.gather(items)]


def _of(table: pd.DataFrame, setting: SettingScores) -> pd.DataFrame:
    """The rows of one setting in one mode."""
    return table[(table["setting"] == setting.name) & (table["mode"] == setting.mode)]
