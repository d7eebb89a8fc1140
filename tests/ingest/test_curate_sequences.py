"""Any sequence of edits against a model of them in plain Python."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.data.edits import Erase, Undo, in_force
from kshot.data.packed import SPLITS, PackedDataset
from kshot.errors import DataError
from kshot.ingest.curate import drop, merge_classes, min_images, move_split, relabel, undo
from tests.tiny_dataset import tiny_dataset

CLASSES = [f"{split}/c{number}" for split in ("train", "val", "test") for number in range(4)]
NAMES = [*CLASSES, "train/new", "val/new"]


@dataclass
class Model:
    """Class of each item, whether it is used, and the split of each class."""

    class_of: dict[str, str]
    used: dict[str, bool]
    split_of: dict[str, str]

    def items(self, names: list[str]) -> list[str]:
        return [item for item, name in self.class_of.items() if name in names]

    def leave_out(self, items: list[str]) -> None:
        self.used |= dict.fromkeys(items, False)

    def n_used(self, name: str) -> int:
        return sum(self.used[item] for item in self.items([name]))

    def seen(self) -> tuple[dict[str, str], dict[str, str]]:
        """What a reader sees: the class of each item in use, and the split of each class that has one."""
        items = {item: name for item, name in self.class_of.items() if self.used[item]}
        return items, {name: self.split_of[name] for name in set(items.values())}


Change = Callable[[Model], None]


def dropped(ids: list[str], classes: list[str]) -> Change:
    def change(model: Model) -> None:
        model.leave_out([*ids, *model.items(classes)])

    return change


def relabelled(ids: list[str], to: str) -> Change:
    def change(model: Model) -> None:
        model.split_of.setdefault(to, model.split_of[model.class_of[ids[0]]])
        model.class_of |= dict.fromkeys(ids, to)

    return change


def moved(classes: list[str], to: str) -> Change:
    return lambda model: model.split_of.update(dict.fromkeys(classes, to))


def merged(classes: list[str], into: str) -> Change:
    def change(model: Model) -> None:
        model.split_of.setdefault(into, model.split_of[classes[0]])
        model.class_of |= dict.fromkeys(model.items(classes), into)

    return change


def of_least(n: int) -> Change:
    def change(model: Model) -> None:
        small = [name for name in set(model.class_of.values()) if model.n_used(name) < n]
        model.leave_out(model.items(small))

    return change


def operation(data: st.DataObject, folder: Path, ids: list[str]) -> tuple[Callable[[], Any], Change | None]:
    """A call, and what it does to the model; None for an undo."""
    some = st.lists(st.sampled_from(ids), min_size=1, max_size=4, unique=True)
    classes = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=2, unique=True)
    match data.draw(st.sampled_from(("drop", "relabel", "move", "merge", "least", "undo"))):
        case "drop":
            items, names = data.draw(st.one_of(st.just([]), some)), data.draw(st.one_of(st.just([]), classes))
            return lambda: drop(folder, ids=items, classes=names), dropped(items, names)
        case "relabel":
            items, to = data.draw(some), data.draw(st.sampled_from(NAMES))
            return lambda: relabel(folder, dict.fromkeys(items, to), new_class=True), relabelled(items, to)
        case "move":
            names, split = data.draw(classes), data.draw(st.sampled_from(SPLITS))
            return lambda: move_split(folder, names, split), moved(names, split)
        case "merge":
            names, to = data.draw(classes), data.draw(st.sampled_from(NAMES))
            return lambda: merge_classes(folder, names, to), merged(names, to)
        case "least":
            n = data.draw(st.integers(2, 6))
            return lambda: min_images(folder, n), of_least(n)
        case _:
            number = data.draw(st.one_of(st.none(), st.integers(1, 4)))
            return lambda: undo(folder, number), None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_readers_see_what_the_edits_in_force_leave_and_a_refused_edit_changes_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = tiny_dataset().write(Path(temporary) / "tiny")
        stored = PackedDataset.open(folder)
        class_of = dict(zip(stored.manifest["id"].to_pylist(), stored.manifest["class"].to_pylist(), strict=True))
        split_of = stored.splits.by_class()
        changes: list[Change | None] = []
        for _ in range(data.draw(st.integers(1, 7))):
            before = (folder / "dataset.json").read_bytes()
            call, change = operation(data, folder, list(class_of))
            try:
                call()
                changes.append(change)
            except DataError:
                assert (folder / "dataset.json").read_bytes() == before
        dataset = PackedDataset.open(folder)
        edits = dataset.info.edits
        assert len(edits) == len(changes)
        model = Model(dict(class_of), dict.fromkeys(class_of, True), dict(split_of))
        for edit, holds, change in zip(edits, in_force(edits), changes, strict=True):
            if holds and not isinstance(edit, Undo | Erase):
                assert change is not None
                change(model)
        items, splits = model.seen()
        rows = dataset.manifest
        assert dict(zip(rows["id"].to_pylist(), rows["class"].to_pylist(), strict=True)) == items
        assert dataset.splits.by_class() == splits
