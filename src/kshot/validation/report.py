"""What the validate stage found, as facts.json and as a page that opens offline."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kshot.data.class_table import Int
from kshot.data.edits import in_force
from kshot.data.packed import SPLITS, PackedDataset
from kshot.pages.page import figure_uri, render
from kshot.printing import counted
from kshot.seeding import random_bits, stream_key
from kshot.validation.facts import Facts, read_items
from kshot.validation.remedies import Remedy

_NAMED, _PAIRS_IN_FACTS, _PAIRS_IN_PAGE = 20, 100, 12
_SAMPLE_CLASSES, _SAMPLE_ITEMS = 6, 6


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """`found` and `needed` in words; `offenders` names what fails, each once, in the order of the table.

    `remedy` resolves what failed.
    """

    name: str
    severity: Literal["critical", "warning"]
    passed: bool
    needed: str
    found: str
    offenders: tuple[str, ...]
    remedy: Remedy = field(default_factory=Remedy, compare=False)


def summary(dataset: PackedDataset, facts: Facts, results: list[CheckResult]) -> dict[str, Any]:
    """The content of facts.json: no time, no machine, only what the data and the settings determine."""
    items, classes = facts.items, facts.classes
    return {
        "format_version": 1,
        "dataset": dataset.name,
        "data_hash": dataset.content_hash,
        "stored_hash": dataset.stored_hash,
        "accepted": all(result.passed for result in results if result.severity == "critical"),
        "checks": [_check_row(result) for result in results],
        "items": len(items),
        "classes": len(classes),
        "groups": int(items["group"].nunique()),
        "item": asdict(dataset.item),
        "rotations": dataset.info.rotations,
        "splits": _split_rows(dataset, facts),
        "images_per_class": {"min": int(classes["items"].min()), "max": int(classes["items"].max())},
        "brightness": {name: _rounded(items[name].mean()) for name in ("mean", "std") if name in items},
        "versions": items["version"].nunique(),
        "near_duplicates": _near_duplicates(facts),
        "quarantined": [asdict(file) for file in dataset.info.quarantined],
        "drift": _drift_row(facts),
        **({"edits": _edit_rows(dataset)} if dataset.info.edits else {}),
    }


def _check_row(result: CheckResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": result.name,
        "severity": result.severity,
        "passed": result.passed,
        "needed": result.needed,
        "found": result.found,
        "offenders": result.offenders[:_NAMED],
    }
    return row | ({"next": result.remedy.command} if result.remedy.command else {})


def findings(results: list[CheckResult]) -> str:
    """Every item and class that a check found, those of critical checks first.

    A CSV with the columns check, severity, id, class, split and action.
    """
    results = sorted(results, key=lambda result: result.severity != "critical")
    tables = [result.remedy.findings.assign(check=result.name, severity=result.severity) for result in results]
    table = pd.concat([table for table in tables if len(table)] or tables[:1])
    return table[["check", "severity", "id", "class", "split", "action"]].to_csv(index=False, lineterminator="\n")


def _edit_rows(dataset: PackedDataset) -> list[dict[str, Any]]:
    edits = zip(dataset.info.edits, in_force(dataset.info.edits), strict=True)
    return [
        {"number": number, "edit": str(edit), "reason": edit.reason, "in_force": holds}
        for number, (edit, holds) in enumerate(edits, start=1)
    ]


def _near_duplicates(facts: Facts) -> dict[str, Any] | None:
    near, ids = facts.near_duplicates, facts.items["id"].to_numpy()
    if near is None:
        return None
    most_alike = zip(near.first[:_PAIRS_IN_FACTS], near.second[:_PAIRS_IN_FACTS], near.correlation, strict=False)
    return {
        "compared": near.n_compared,
        "complete": near.complete,
        "across_classes": len(near),
        "across_splits": near.across_splits,
        "most_alike": [
            {"first": ids[first], "second": ids[second], "correlation": _rounded(correlation)}
            for first, second, correlation in most_alike
        ],
    }


def _split_rows(dataset: PackedDataset, facts: Facts) -> list[dict[str, Any]]:
    n_rotations = len(dataset.info.rotations)
    rows = []
    for split in SPLITS:
        held = facts.classes[facts.classes["class"].isin(dataset.splits.of(split))]
        rows.append(
            {
                "split": split,
                "items": int(held["items"].sum()),
                "classes": len(held),
                "classes_with_rotations": len(held) * n_rotations,
                "groups": int(held["group"].nunique()),
                "images_per_class": [int(held["items"].min()), int(held["items"].max())] if len(held) else [0, 0],
            }
        )
    return rows


def _drift_row(facts: Facts) -> dict[str, Any] | None:
    if facts.drift is None:
        return None
    row = asdict(facts.drift)
    for measure in ("mean", "std"):
        if row[measure] is not None:
            row[measure] = {name: _rounded(value) for name, value in row[measure].items()}
    return row | {"class_shift": _rounded(facts.drift.class_shift)}


def _rounded(value: float) -> float | None:
    """None for a number that could not be measured; rounding hides the order in which a machine adds."""
    return None if np.isnan(value) else round(float(value), 4)


def page(dataset: PackedDataset, facts: Facts, results: list[CheckResult], seed: int) -> str:
    failed = [result for result in results if not result.passed]
    return render(
        "validate.html.j2",
        name=dataset.name,
        info=dataset.info,
        facts=facts,
        splits=_split_rows(dataset, facts),
        passed=[result for result in results if result.passed],
        refused=[result for result in failed if result.severity == "critical"],
        warned=[result for result in failed if result.severity == "warning"],
        named=_NAMED,
        noun=dataset.item.kind,
        data_hash=dataset.content_hash,
        samples={split: _samples(dataset, facts, split, seed) for split in SPLITS},
        pairs=_alike(dataset, facts),
        histogram=figure_uri(_histogram(dataset, facts)),
        feasibility=_feasibility(facts),
        edits=_edit_rows(dataset),
    )


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Items side by side over the lines of their caption."""

    caption: tuple[str, ...]
    shown: tuple[Markup, ...]


def _samples(dataset: PackedDataset, facts: Facts, split: str, seed: int) -> list[Pictures]:
    """A few items of a few classes, drawn by the seed."""
    candidates = np.flatnonzero(facts.items["readable"] & (facts.items["split"] == split))
    codes, names = pd.factorize(facts.items["class"].iloc[candidates])
    key = stream_key(seed, "validate", "samples", split)
    chosen = np.argsort(random_bits(key, np.arange(len(names))), kind="stable")[:_SAMPLE_CLASSES]
    pictures = []
    for number in np.sort(chosen):
        members = candidates[codes == number]
        rows = np.sort(members[np.argsort(random_bits(key, members), kind="stable")[:_SAMPLE_ITEMS]])
        caption = (f"{names[number]}, {counted(len(members), dataset.item.kind)}",)
        pictures.append(Pictures(caption=caption, shown=_shown(dataset, rows)))
    return pictures


def _alike(dataset: PackedDataset, facts: Facts) -> list[Pictures]:
    """The near-duplicate pairs that are most alike."""
    ids, near = facts.items["id"].to_numpy(), facts.near_duplicates
    pictures: list[Pictures] = []
    if near is None:
        return pictures
    for number in range(min(len(near), _PAIRS_IN_PAGE)):
        pair = np.array([near.first[number], near.second[number]])
        splits = "two splits" if near.splits[number] > 1 else "one split"
        caption = (*ids[pair], f"correlation {near.correlation[number]:.3f}, {splits}")
        pictures.append(Pictures(caption=caption, shown=_shown(dataset, pair)))
    return pictures


def _shown(dataset: PackedDataset, rows: Int) -> tuple[Markup, ...]:
    return tuple(dataset.item.show(item) for item in read_items(dataset, rows))


def _histogram(dataset: PackedDataset, facts: Facts) -> Figure:
    """Classes by their number of items, the splits stacked."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    counts = [facts.classes["items"][facts.classes["class"].isin(dataset.splits.of(split))] for split in SPLITS]
    low, high = int(facts.classes["items"].min()), int(facts.classes["items"].max())
    edges = np.linspace(low - 0.5, high + 0.5, min(high - low + 1, 40) + 1)
    if low == high:
        low, high = low - 4, high + 4  # one bar, not as wide as the page
    axes.hist(counts, bins=edges.tolist(), stacked=True, label=list(SPLITS), rwidth=0.9)
    axes.set(xlabel=f"{dataset.item.kind}s of a class", ylabel="classes", xlim=(low - 1, high + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(SPLITS), frameon=False)
    return figure


def _feasibility(facts: Facts) -> list[dict[str, Any]]:
    """A row per split and episode shape: what it draws from, against what it needs."""
    fewest = facts.class_shapes.groupby(["split", "shape"])[["items_found", "items_needed"]].min()
    table = facts.split_shapes.join(fewest, on=["split", "shape"]).fillna(0)
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]
