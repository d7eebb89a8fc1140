"""Edits of a packed dataset: which of its items are used, as which class, in which split.

Shards and manifest stay as ingest wrote them. dataset.json lists the edits in the order in which they were made, and
whoever opens the dataset applies them in that order. An edit of classes is a rule: it holds for items that are
appended later too. An undo is an edit as well, so that the list is only ever appended to.

Shapes: n stored items, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.data.class_table import Int
from kshot.printing import counted
from kshot.settings import STRICT

SplitName = Literal["meta_train", "meta_val", "meta_test"]
Number = Annotated[int, Field(ge=1)]

_IF_EMPTY = Field(exclude_if=lambda value: not value)
_SHOWN = 3  # how many names an edit shows of itself


@settings(frozen=True, kw_only=True, config=STRICT)
class ItemList:
    """Ids of items and, where they are relabelled, the new class of each: in place, or many of them in a file."""

    ids: Annotated[tuple[str, ...], _IF_EMPTY] = ()
    classes: Annotated[tuple[str, ...], _IF_EMPTY] = ()
    file: Annotated[str, _IF_EMPTY] = ""
    sha256: Annotated[str, _IF_EMPTY] = ""


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The stored items as the edits leave them.

    classes (C,) names; groups (C,) the group of each; splits (C,) the splits that list each; class_of (n,) number of
    each item's class; active (n,) whether the item is used.
    """

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[tuple[str, ...], ...]
    class_of: Int
    active: NDArray[np.bool_]

    @cached_property
    def number_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def numbers(self, names: Sequence[str]) -> Int:
        """Of those classes that are known by now."""
        return np.array([self.number_of[name] for name in names if name in self.number_of], dtype=np.int64)

    @property
    def counts(self) -> Int:
        """(C,) items in use."""
        return np.bincount(self.class_of[self.active], minlength=len(self.classes))

    def without(self, classes: Int) -> "Curation":
        """The same where these classes are used no more."""
        gone = set(classes.tolist())
        splits = tuple(() if number in gone else of for number, of in enumerate(self.splits))
        return replace(self, active=self.active & ~np.isin(self.class_of, classes), splits=splits)


RowsOf = Callable[[ItemList], tuple[Int, list[str]]]
"""The stored rows (m,) of the items listed, and the new class of each, where they get one."""


@settings(frozen=True, kw_only=True, config=STRICT)
class DropItems:
    """Items, and every item of `classes`."""

    items: ItemList
    classes: Annotated[tuple[str, ...], _IF_EMPTY] = ()
    n_items: int = 0
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["drop_items"] = "drop_items"

    def __str__(self) -> str:
        classes = f", with {counted(len(self.classes), 'class')}{_named(self.classes)}" if self.classes else ""
        return f"drop of {counted(self.n_items, 'item')}{_named(self.items.ids)}{classes}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        active = before.active.copy()
        active[rows_of(self.items)[0]] = False
        return replace(before, active=active).without(before.numbers(self.classes))


@settings(frozen=True, kw_only=True, config=STRICT)
class DropClasses:
    classes: tuple[str, ...]
    n_items: int = 0
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["drop_classes"] = "drop_classes"

    def __str__(self) -> str:
        return (
            f"drop of {counted(len(self.classes), 'class')}{_named(self.classes)} with {counted(self.n_items, 'item')}"
        )

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        return before.without(before.numbers(self.classes))


@settings(frozen=True, kw_only=True, config=STRICT)
class Relabel:
    """Items get another class. One that is not there is new in the split `new_in`, with the group of its first item."""

    items: ItemList
    new_in: Annotated[SplitName | Literal[""], _IF_EMPTY] = ""
    n_items: int = 0
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["relabel"] = "relabel"

    def __str__(self) -> str:
        into = _named(tuple(dict.fromkeys(self.items.classes)))
        return f"relabelling of {counted(self.n_items, 'item')}{_named(self.items.ids)}{' to' if into else ''}{into}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        rows, names = rows_of(self.items)
        first = dict(zip(reversed(names), reversed(rows.tolist()), strict=True))
        new = [name for name in dict.fromkeys(names) if name not in before.number_of] if self.new_in else []
        after = replace(
            before,
            classes=(*before.classes, *new),
            groups=(*before.groups, *(before.groups[before.class_of[first[name]]] for name in new)),
            splits=(*before.splits, *((self.new_in,) for _ in new)),
        )
        class_of = before.class_of.copy()
        for row, name in zip(rows.tolist(), names, strict=True):
            class_of[row] = after.number_of.get(name, class_of[row])
        return replace(after, class_of=class_of)


@settings(frozen=True, kw_only=True, config=STRICT)
class MoveSplit:
    classes: tuple[str, ...]
    to: SplitName
    n_items: int = 0
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["move_split"] = "move_split"

    def __str__(self) -> str:
        moved = f"{counted(len(self.classes), 'class')}{_named(self.classes)} with {counted(self.n_items, 'item')}"
        return f"move of {moved} to {self.to}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        moved = set(before.numbers(self.classes).tolist())
        splits = tuple((self.to,) if number in moved else of for number, of in enumerate(before.splits))
        return replace(before, splits=splits)


@settings(frozen=True, kw_only=True, config=STRICT)
class MergeClasses:
    """`into` is another class, or a new name, which gets the group of the first; `split` is the one of them all."""

    classes: tuple[str, ...]
    into: str
    split: SplitName
    n_items: int = 0
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["merge_classes"] = "merge_classes"

    def __str__(self) -> str:
        merged = f"{counted(len(self.classes), 'class')}{_named(self.classes)} with {counted(self.n_items, 'item')}"
        return f"merging of {merged} into {self.into!r}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        merged = before.numbers(self.classes)
        if not len(merged):
            return before
        into = before.number_of.get(self.into, len(before.classes))
        is_new = into == len(before.classes)
        gone = set(merged.tolist())
        splits = [() if number in gone else of for number, of in enumerate(before.splits)]
        splits[into : into + 1] = [(self.split,)]
        return replace(
            before,
            classes=(*before.classes, self.into) if is_new else before.classes,
            groups=(*before.groups, before.groups[merged[0]]) if is_new else before.groups,
            splits=tuple(splits),
            class_of=np.where(np.isin(before.class_of, merged), into, before.class_of),
        )


@settings(frozen=True, kw_only=True, config=STRICT)
class MinImages:
    """Leaves out every class with fewer items; one that grows to so many comes back by itself."""

    n: Number
    n_classes: int = 0
    n_items: int = 0
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["min_images"] = "min_images"

    def __str__(self) -> str:
        left_out = f"{counted(self.n_classes, 'class')} with {counted(self.n_items, 'item')}"
        return f"least number of items per class, {self.n}, which leaves out {left_out}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        return before.without(np.flatnonzero(before.counts < self.n))


@settings(frozen=True, kw_only=True, config=STRICT)
class Undo:
    """Takes back the edit `number`, counted from 1. Undoing an undo brings that edit back."""

    number: Number
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["undo"] = "undo"

    def __str__(self) -> str:
        return f"undo of edit {self.number}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        return before


@settings(frozen=True, kw_only=True, config=STRICT)
class Erase:
    """Items that are gone for good; it says how many they were, and nothing about them."""

    n_items: int
    reason: Annotated[str, _IF_EMPTY] = ""
    edit: Literal["erase"] = "erase"

    def __str__(self) -> str:
        return f"erasure of {counted(self.n_items, 'item')}"

    def apply(self, before: Curation, rows_of: RowsOf) -> Curation:
        return before


Edit = Annotated[
    DropItems | DropClasses | Relabel | MoveSplit | MergeClasses | MinImages | Undo | Erase,
    Field(discriminator="edit"),
]


def in_force(edits: Sequence[Edit]) -> tuple[bool, ...]:
    """Whether each edit holds: it does unless an undo that itself holds takes it back."""
    holds = [True] * len(edits)
    for position in range(len(edits) - 1, -1, -1):
        edit = edits[position]
        if holds[position] and isinstance(edit, Undo) and edit.number <= position:
            holds[edit.number - 1] = False
    return tuple(holds)


def steps(before: Curation, edits: Sequence[Edit], rows_of: RowsOf) -> Iterator[tuple[int, Curation]]:
    """The number of every edit in force, counted from 1, and what it leaves."""
    for number, (edit, holds) in enumerate(zip(edits, in_force(edits), strict=True), start=1):
        if holds:
            before = edit.apply(before, rows_of)
            yield number, before


def applied(stored: Curation, edits: Sequence[Edit], rows_of: RowsOf) -> Curation:
    """What all edits leave. A class is listed while an item of it is used, or where none was ever stored."""
    after = stored
    for _, left in steps(stored, edits, rows_of):
        after = left
    ever = np.bincount(stored.class_of, minlength=len(after.classes)) > 0
    ever[len(stored.classes) :] = True
    emptied = np.flatnonzero((after.counts == 0) & ever)
    return after.without(emptied)


def _named(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f" {', '.join(map(repr, names[:_SHOWN]))}{more}"
