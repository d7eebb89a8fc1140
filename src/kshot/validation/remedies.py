"""What resolves a finding of validation: the command that does, and the items and classes that it is about.

Items of which two labels contradict each other are all dropped, for nobody can tell which label is right. Where there
is no contradiction, one of the copies stays.
"""

import math
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kshot.data.packed import SPLITS, PackedDataset
from kshot.validation.facts import Facts, NearDuplicates

DROP, MAY_DROP, KEEP = "drop", "may drop", "keep"
"""What to do with an item: needed before the dataset is accepted, suggested by a warning, or nothing."""

RESTORE = "dvc checkout --force data.dvc"
_COLUMNS = ["id", "class", "split", "action"]
_NAMED = 5  # classes that a command names
_FEW = 0.05  # of the items may still be enlarged


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame(columns=_COLUMNS, dtype=object)


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """`command` resolves the finding, "" where none does.

    findings: a row per item, or per class with an empty id: id, class, split, action, which is "", `DROP`,
        `MAY_DROP` or `KEEP`.
    """

    command: str = ""
    findings: pd.DataFrame = field(default_factory=_no_rows)


def no_remedy(rows: pd.DataFrame) -> Remedy:
    return Remedy()


def no_class_remedy(dataset: PackedDataset, rows: pd.DataFrame) -> Remedy:
    return Remedy(findings=_class_rows(rows, splits_of(dataset)))


def restored(rows: pd.DataFrame) -> Remedy:
    return Remedy(command=RESTORE)


def restored_items(rows: pd.DataFrame) -> Remedy:
    return Remedy(command=RESTORE, findings=_item_rows(rows, ""))


@dataclass(frozen=True)
class Drop:
    """Remedies that leave items of a dataset out."""

    dataset: str

    def critical(self, check: str) -> Callable[[pd.DataFrame], Remedy]:
        return lambda rows: self._of(check, _item_rows(rows, DROP))

    def warned(self, check: str) -> Callable[[pd.DataFrame], Remedy]:
        return lambda rows: self._of(check, _item_rows(rows, MAY_DROP))

    def all_but_first(self, check: str) -> Callable[[pd.DataFrame], Remedy]:
        """Of the copies of an item in its class."""

        def remedy(rows: pd.DataFrame) -> Remedy:
            again = rows.duplicated(["content_sha256", "class"]).to_numpy()
            return self._of(check, _item_rows(rows, np.where(again, MAY_DROP, KEEP)))

        return remedy

    def one_of_each_pair(self, check: str, items: pd.DataFrame, near: NearDuplicates) -> Remedy:
        """Of two items that look alike, the one that looks like more others."""
        n_alike = np.bincount(np.concatenate([near.first, near.second]))
        action: dict[int, str] = {}
        for first, second in zip(near.first.tolist(), near.second.tolist(), strict=True):
            if MAY_DROP not in (action.get(first), action.get(second)):
                dropped = first if n_alike[first] > n_alike[second] else second
                action[dropped] = MAY_DROP
                action.setdefault(first + second - dropped, KEEP)
        rows = sorted(action)
        return self._of(check, _item_rows(items.iloc[rows], [action[row] for row in rows]))

    def _of(self, check: str, findings: pd.DataFrame) -> Remedy:
        return Remedy(command=f"kshot curate {self.dataset} drop --finding {check}", findings=findings)


def dropped_or_smaller(drop: Drop, items: pd.DataFrame, rows: pd.DataFrame) -> Remedy:
    """Of items that were enlarged: left out, or all of them smaller where they are most.

    `original_px` of an item is the side of its original that has to fill it.
    """
    if 2 * len(rows) <= len(items):
        return drop.warned("original_size")(rows)
    size = max(int(items["original_px"].quantile(_FEW)), 8)
    return Remedy(command=f"ingest the source again under another name with --image-size {size}")


def put_into_a_split(dataset: str, rows: pd.DataFrame) -> Remedy:
    """Of classes that are in none: into the one that no score depends on."""
    classes = rows.drop_duplicates("class").assign(id="", split="", action="")
    return Remedy(
        command=f"kshot curate {dataset} move-split --finding known_labels --to {SPLITS[0]}",
        findings=classes[_COLUMNS],
    )


def left_in_one_split(dataset: PackedDataset, rows: pd.DataFrame) -> Remedy:
    """Of classes in several: in the first, because models were trained on it."""
    splits = splits_of(dataset)
    first = next((split for split in SPLITS if split in splits[rows["class"].iloc[0]]), SPLITS[0])
    return Remedy(
        command=f"kshot curate {dataset.name} move-split --finding disjoint_splits --to {first}",
        findings=_class_rows(rows, splits),
    )


def merged_twins(dataset: PackedDataset, rows: pd.DataFrame) -> Remedy:
    """Of the first class name and those that differ from it in case or composition alone."""
    splits = splits_of(dataset)
    folded = rows["class"].str.normalize("NFC").str.casefold()
    twins = rows["class"][folded == folded.iloc[0]].tolist()
    merged = f"kshot curate {dataset.name} merge-classes {_words(twins)} --into {_words(twins[:1])}"
    one_split = len({splits[name] for name in twins}) == 1
    command = merged if one_split and all(map(str.isprintable, twins)) else ""
    return Remedy(command=command, findings=_class_rows(rows, splits))


def left_out_or_lowered(dataset: str, class_shapes: pd.DataFrame, rows: pd.DataFrame) -> Remedy:
    """Of classes short of items: left out, or asked for less where a split would have none left."""
    short = rows.sort_values("items_needed", ascending=False, kind="stable").drop_duplicates(["split", "class"])
    findings = short.sort_index().assign(id="", action=DROP)[_COLUMNS]
    n_short = short.groupby("split")["class"].nunique()
    emptied = _emptied(class_shapes, n_short)
    if emptied:
        found = short.groupby("split")["items_found"]
        most = found.min().where(found.min() >= 2, found.max())  # 1 to learn from and 1 to ask are the least
        limits = ", ".join(f"{most[split]} or less of task_pool.{split}" for split in emptied)
        lowered = f"lower k_shot and n_query in params.yaml, together to {limits}"
        more = f"ingest more images of the classes in {', '.join(emptied)}"
        enough = all(most[split] >= 2 for split in emptied)
        return Remedy(command=lowered if enough else more, findings=findings.assign(action=""))
    n = int(short["items_needed"].max())
    smaller = class_shapes[class_shapes["items_found"] < n]["class"].nunique()
    command = f"min-images {n}" if smaller == short["class"].nunique() else "drop --finding images_per_class"
    return Remedy(command=f"kshot curate {dataset} {command}", findings=findings)


def _emptied(class_shapes: pd.DataFrame, n_short: "pd.Series[int]") -> list[str]:
    """The splits of which every class is short of items."""
    n_all = class_shapes.groupby("split")["class"].nunique()
    return [split for split in SPLITS if split in n_short and n_short[split] == n_all[split]]


def _left_out(facts: Facts) -> "pd.Series[int]":
    """How many classes of each split are left out, where that is what resolves that they are short of items."""
    shapes = facts.class_shapes
    short = shapes[shapes["items_found"] < shapes["items_needed"]]
    n_short = short.groupby("split")["class"].nunique()
    return n_short.iloc[:0] if _emptied(shapes, n_short) else n_short


def moved_or_lowered(dataset: PackedDataset, facts: Facts, rows: pd.DataFrame) -> Remedy:
    """Of splits short of classes: fewer classes per episode, and classes of a split that has more than it needs.

    Those that are left out because they are short of items do not count.
    """
    fewest = rows.groupby("split", sort=False)["classes_found"].min()
    left_out = _left_out(facts).reindex(fewest.index, fill_value=0) * len(dataset.info.rotations)
    fewest = (fewest - left_out).clip(lower=0)
    limits = ", ".join(f"{n_found} or less of task_pool.{split}" for split, n_found in fewest.items())
    lowered = f"lower n_way in params.yaml to {limits}" if fewest.min() > 1 else ""
    worst = rows.sort_values("classes_needed", ascending=False, kind="stable").iloc[0]
    n_found, split = int(worst["classes_found"]), str(worst["split"])
    n_wanted = math.ceil((worst["classes_needed"] - n_found) / len(dataset.info.rotations))
    spare = _spare_classes(facts, split, len(dataset.info.rotations)) if worst["where"] == "in the split" else []
    moved = ""
    if len(fewest) == 1 and n_wanted <= min(len(spare), _NAMED):
        moved = f"kshot curate {dataset.name} move-split {_words(spare[:n_wanted])} --to {split}"
    return Remedy(command=", or ".join(part for part in (moved, lowered) if part))


def _spare_classes(facts: Facts, split: str, n_rotations: int) -> list[str]:
    """Classes that the fullest other split can do without and that have enough items for the episodes of `split`."""
    needed = facts.split_shapes.groupby("split")["classes_needed"].max()
    held = facts.class_shapes.drop_duplicates(["split", "class"])
    n_held = held["split"].value_counts()
    spare = {
        other: int(n_held[other]) - math.ceil(needed.get(other, 1) / n_rotations)
        for other in n_held.index
        if other != split
    }
    if not spare:
        return []
    fullest = max(spare, key=lambda other: spare[other])
    per_class = facts.class_shapes[facts.class_shapes["split"] == split]["items_needed"].max()
    fit = held[(held["split"] == fullest) & (held["items_found"] >= (0 if np.isnan(per_class) else per_class))]
    names = [name for name in fit["class"].tolist() if name.isprintable()]
    return names[: max(spare[fullest], 0)]


def tolerated(share: float) -> Remedy:
    """Of files that ingest refused: mended in the source, or put up with."""
    limit = min(math.ceil(share * 1000) / 1000, 0.999)
    return Remedy(
        command=f"mend the files and ingest again, or set validate.max_quarantined_share: {limit:g} in params.yaml"
    )


def most_frequent_reason(dataset: PackedDataset) -> str:
    """In words, to be put behind the share of files refused; "" where there are none."""
    reasons = Counter(file.reason for file in dataset.info.quarantined)
    if not reasons:
        return ""
    reason, n_files = reasons.most_common(1)[0]
    return f", most often for {reason!r} ({n_files:,} of {reasons.total():,})"


def splits_of(dataset: PackedDataset) -> dict[str, str]:
    """The splits that list each class, as one text."""
    listed: dict[str, list[str]] = {}
    for split in SPLITS:
        for name in dataset.splits.of(split):
            listed.setdefault(name, []).append(split)
    return {name: " ".join(splits) for name, splits in listed.items()}


def _item_rows(rows: pd.DataFrame, action: str | list[str] | NDArray[np.str_]) -> pd.DataFrame:
    return rows[["id", "class", "split"]].assign(action=action)


def _class_rows(rows: pd.DataFrame, splits: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({"id": "", "class": rows["class"], "split": rows["class"].map(splits).fillna(""), "action": ""})


def _words(names: list[str]) -> str:
    return " ".join(map(shlex.quote, names))
