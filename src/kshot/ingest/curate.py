"""Curates a packed dataset: leaves out, relabels, moves and merges, without touching what ingest stored.

Each operation appends one edit to dataset.json (see `kshot.data.edits`) and so makes another version of the dataset.
It is refused where it would do nothing, or leave a split without a class that has one now.
"""

import csv
import hashlib
import io
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kshot.data.class_table import Int
from kshot.data.edits import (
    Curation,
    DropClasses,
    DropItems,
    Edit,
    Erase,
    ItemList,
    MergeClasses,
    MinImages,
    MoveSplit,
    Relabel,
    Undo,
    in_force,
    steps,
)
from kshot.data.packed import INFO_FILE, SPLITS, DatasetInfo, PackedDataset, info_json
from kshot.errors import DataError
from kshot.ingest.sources import check_class_names
from kshot.ingest.splits import split_of
from kshot.ingest.writer import hold, next_file, write_atomically
from kshot.printing import counted

_IN_PLACE = 20  # so many ids of an edit stand in dataset.json itself
_HISTORY = "next: kshot curate {} history"
_SHOWN = 5  # how many names a message lists
_COMPARED = 20_000  # names that a misspelt one is compared with


@dataclass(frozen=True, kw_only=True)
class Census:
    """Items and classes in use, of every split."""

    items: Mapping[str, int]
    classes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class CurateReport:
    """What an edit did. `notes` say what the counts do not."""

    folder: Path
    number: int
    edit: Edit
    before: Census
    after: Census
    notes: tuple[str, ...] = ()


def drop(folder: Path, *, ids: Sequence[str] = (), classes: Sequence[str] = (), reason: str = "") -> CurateReport:
    """Leave out the items of these ids, and every item of these classes."""
    with editing(folder) as dataset:
        names = known_classes(dataset, classes) if classes or not ids else ()
        if not ids:
            return _publish(dataset, DropClasses(classes=names, reason=reason))
        rows = known_rows(dataset, ids)
        used = rows[curation_of(dataset).active[rows]]
        if not len(used):
            raise DataError(
                f"found {counted(len(rows), 'item')} to drop, none of them in use; {_HISTORY.format(dataset.name)}"
            )
        left = len(rows) - len(used)
        notes = (f"{counted(left, 'item')} of the list {'was' if left == 1 else 'were'} out already",) if left else ()
        items = ItemList(ids=tuple(dict.fromkeys(_ids(dataset, used))))
        return _publish(dataset, DropItems(items=items, classes=names, reason=reason), notes)


def still_in_use(folder: Path, ids: Sequence[str], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the items and classes of a list that no edit has left out yet. Raises DataError for unknown ones."""
    dataset = PackedDataset.open(folder)
    state = curation_of(dataset)
    rows = known_rows(dataset, ids) if ids else np.zeros(0, dtype=np.int64)
    used = _used_classes(state)
    names = known_classes(dataset, classes, in_use=False) if classes else ()
    return list(_ids(dataset, rows[state.active[rows]])), [name for name in names if name in used]


def relabel(folder: Path, class_of: Mapping[str, str], reason: str = "", *, new_class: bool = False) -> CurateReport:
    """Give each item of `class_of` (id -> class) that class. An item goes into the split of its new class.

    With `new_class`, a class that is not there is made, in the split of its items.
    """
    with editing(folder) as dataset:
        rows = known_rows(dataset, list(class_of))
        state = curation_of(dataset)
        wanted = list(dict.fromkeys(map(_composed, class_of.values())))
        new = [name for name in wanted if name not in state.number_of] if new_class else []
        check_class_names([*(name for name in _used_classes(state) if any(_alike(name, one) for one in new)), *new])
        _check_known(dataset, [name for name in wanted if name not in new])
        out = rows[~state.active[rows]]
        if len(out):
            others = f", and neither are {len(out) - 1:,} others" if len(out) > 1 else ""
            raise DataError(
                f"item {_ids(dataset, out)[0]!r} is not in use{others}; needed items in use; "
                f"{_HISTORY.format(dataset.name)}"
            )
        ids = _ids(dataset, rows)
        numbers = state.number_of | {name: len(state.classes) + n for n, name in enumerate(new)}
        to = np.array([numbers[_composed(class_of[name])] for name in ids], dtype=np.int64)
        changed = np.flatnonzero(to != state.class_of[rows])
        if not len(changed):
            raise DataError(f"{counted(len(rows), 'item')} already of that class; needed another class")
        new_in = _split_of_new_classes(dataset, state, rows[to >= len(state.classes)])
        split_of_class = [", ".join(splits) for splits in state.splits] + [new_in] * len(new)
        moves = Counter((split_of_class[state.class_of[rows[n]]], split_of_class[to[n]]) for n in changed.tolist())
        notes = tuple(
            f"{counted(n, 'item')} moved from {old or 'no split'} to {now}; models trained before may have seen them"
            for (old, now), n in sorted(moves.items())
            if old != now
        )
        names = {number: name for name, number in numbers.items()}
        items = ItemList(
            ids=tuple(ids[n] for n in changed.tolist()), classes=tuple(names[int(to[n])] for n in changed.tolist())
        )
        return _publish(dataset, Relabel(items=items, new_in=new_in, reason=reason), notes)  # type: ignore[arg-type]


def _check_known(dataset: PackedDataset, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in curation_of(dataset).number_of]
    if unknown:
        near = _nearest(unknown[0], list(_used_classes(curation_of(dataset))))
        raise DataError(
            f"{dataset.name} has no class {unknown[0]!r}; needed one of its classes{near}; next: add --new-class, "
            "which makes it"
        )
    if names:
        known_classes(dataset, names)


def _split_of_new_classes(dataset: PackedDataset, state: Curation, rows: Int) -> str:
    """The one split of the items of new classes; "" without any."""
    splits = sorted({split for number in np.unique(state.class_of[rows]).tolist() for split in state.splits[number]})
    if len(splits) > 1:
        raise DataError(
            f"the items of new classes are in {' and '.join(splits)}; needed one split for a new class; next: relabel "
            "those of one split at a time"
        )
    return splits[0] if splits else ""


def move_split(folder: Path, classes: Sequence[str], to: str, reason: str = "") -> CurateReport:
    split = split_of(to)
    if split is None:
        raise DataError(f"found split {to!r} after --to; needed one of {', '.join(SPLITS)}")
    with editing(folder) as dataset:
        state = curation_of(dataset)
        names = known_classes(dataset, classes)
        moved = tuple(name for name in names if state.splits[state.number_of[name]] != (split,))
        if not moved:
            raise DataError(f"{_named('class', names)} already in {split}; needed another split")
        notes = (f"models trained before may have seen the classes that are now in {split}",)
        edit = MoveSplit(classes=moved, to=split, reason=reason)  # type: ignore[arg-type]
        return _publish(dataset, edit, () if split == "meta_train" else notes)


def merge_classes(folder: Path, classes: Sequence[str], into: str, reason: str = "") -> CurateReport:
    """Make one class of several of one split; `into` may be one of them, another class, or a new name."""
    with editing(folder) as dataset:
        names, into = known_classes(dataset, classes), _composed(into)
        state = curation_of(dataset)
        known = _used_classes(state)
        if names == (into,):
            raise DataError(f"class {into!r} into itself changes nothing; needed another class")
        if not into.strip():
            raise DataError("found an empty class name after --into; needed a name")
        if into in state.number_of and into not in known:
            raise DataError(f"class {into!r} was left out; needed one in use, or a new name")
        check_class_names([*(name for name in known if name not in names and _alike(name, into)), into])
        together = [*names, into] if into in known else names
        splits = {name: _split_of(state, state.number_of[name]) for name in dict.fromkeys(together)}
        target = splits.get(into, splits[names[0]]) or SPLITS[0]
        others = [name for name, split in splits.items() if split != target]
        if others:
            found = splits[others[0]] or "no split"
            raise DataError(
                f"{_named('class', others)} in {found}; needed all of them in {target}; "
                f"next: kshot curate {dataset.name} move-split {words(others)} --to {target}"
            )
        sources = tuple(name for name in names if name != into)
        edit = MergeClasses(classes=sources, into=into, split=target, reason=reason)  # type: ignore[arg-type]
        return _publish(dataset, edit)


def min_images(folder: Path, n: int, reason: str = "") -> CurateReport:
    if n < 1:
        raise DataError(f"found {n} as the least number of items per class; needed 1 or more")
    with editing(folder) as dataset:
        state = curation_of(dataset)
        counts = dict(zip(state.classes, state.counts.tolist(), strict=True))
        small = [name for name in _used_classes(state) if counts[name] < n]
        listed = (f"left out: {', '.join(f'{name!r} ({counts[name]})' for name in small)}",) if small else ()
        return _publish(dataset, MinImages(n=n, n_classes=len(small), reason=reason), listed)


def undo(folder: Path, number: int | None = None, reason: str = "") -> CurateReport:
    """Take back the edit `number`, or the last one that holds."""
    with editing(folder) as dataset:
        edits = dataset.info.edits
        holds = in_force(edits)
        open_ = [n for n, edit in enumerate(edits, start=1) if holds[n - 1] and not isinstance(edit, Undo | Erase)]
        if number is None:
            if not open_:
                raise DataError(f"{dataset.name} has no edit to undo; {_HISTORY.format(dataset.name)}")
            number = open_[-1]
        elif not 1 <= number <= len(edits):
            raise DataError(f"found no edit {number}; needed 1 to {len(edits)}; {_HISTORY.format(dataset.name)}")
        edit = edits[number - 1]
        if isinstance(edit, Erase):
            raise DataError(f"edit {number} erased items, which cannot be undone; next: ingest them again")
        if not holds[number - 1]:
            by = next(n for n, other in enumerate(edits, start=1) if isinstance(other, Undo) and other.number == number)
            raise DataError(
                f"edit {number} is already undone by edit {by}; to bring it back, "
                f"next: kshot curate {dataset.name} undo {by}"
            )
        undo_ = Undo(number=number, reason=reason)
        _check_classes_are_there(dataset, (*edits, undo_))
        return _publish(dataset, undo_, (f"undone: edit {number}, {edit}",))


def rules_on_new_items(dataset: PackedDataset, n_new: int) -> tuple[str, ...]:
    """A line for every edit that changed any of the last `n_new` stored items, such as those just ingested."""
    if not dataset.info.edits:
        return ()
    lines = []
    before = dataset.stored_curation
    for number, after in steps(before, dataset.info.edits, dataset.rows_of):
        start = len(after.active) - n_new
        changed = int((after.active != before.active)[start:].sum())
        renamed = int((after.class_of != before.class_of)[start:].sum())
        moved = int(np.isin(after.class_of[start:], _moved(before, after)).sum())
        for n, what in ((changed, "left out"), (renamed, "in another class"), (moved - changed, "in another split")):
            if n > 0:
                lines.append(f"{counted(n, 'new item')} {what} by edit {number}: {dataset.info.edits[number - 1]}")
        before = after
    if dataset.curation is not None:
        n_out = int((~dataset.curation.active[: len(dataset.curation.active) - n_new]).sum())
        lines += [f"{counted(n_out, 'known item')} left out by earlier edits, as before"] if n_out else []
    return tuple(lines)


# What a dataset holds, for the operations here and for erasing


def curation_of(dataset: PackedDataset) -> Curation:
    return dataset.stored_curation if dataset.curation is None else dataset.curation


def census(dataset: PackedDataset) -> Census:
    state = curation_of(dataset)
    counts = state.counts
    held = {split: [n for n, of in enumerate(state.splits) if split in of] for split in SPLITS}
    return Census(
        items={split: int(counts[numbers].sum()) for split, numbers in held.items()},
        classes={split: len(numbers) for split, numbers in held.items()},
    )


def known_classes(dataset: PackedDataset, names: Sequence[str], *, in_use: bool = True) -> tuple[str, ...]:
    """The classes named, each once. Raises DataError for an unknown one, with the nearest name, and one out of use."""
    state = curation_of(dataset)
    used = _used_classes(state)
    wanted = tuple(dict.fromkeys(map(_composed, names)))
    if not wanted:
        raise DataError("found no class; needed the name of at least one")
    for name in wanted:
        if name in used:
            continue
        if name in state.number_of:
            if not in_use:
                continue
            raise DataError(f"class {name!r} of {dataset.name} is left out already; {_HISTORY.format(dataset.name)}")
        raise DataError(
            f"{dataset.name} has no class {name!r}; needed one of its {len(used):,}{_nearest(name, list(used))}"
        )
    return wanted


def known_rows(dataset: PackedDataset, ids: Sequence[str]) -> Int:
    """The stored rows of the items named, in use or not. Raises DataError with the nearest id for an unknown one."""
    if not ids:
        raise DataError("found no item; needed the id of at least one")
    wanted = tuple(dict.fromkeys(ids))
    rows, _ = dataset.rows_of(ItemList(ids=wanted))
    found = set(_ids(dataset, rows))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        stored = dataset.stored_ids.to_pylist()
        file = unknown[0].rpartition("/")[2]
        alike = [name for name in stored if name.rpartition("/")[2] == file] or stored
        more = f" and {len(unknown) - 1:,} more of the list" if unknown[1:] else ""
        near = _nearest(unknown[0], alike)
        raise DataError(f"{dataset.name} has no item {unknown[0]!r}{more}; needed an id of its manifest{near}")
    return rows


def ids_in(path: Path, *, only_action: str = "drop") -> tuple[str, ...]:
    """The ids of a CSV with a column id; where it has a column action, of the rows with this action."""
    return tuple(dict.fromkeys(row["id"] for row in _rows_in(path, ("id",), only_action)))


def to_drop_in(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Items and whole classes that a CSV says to drop: of rows with an id, and of rows with a class alone."""
    rows = _rows_in(path, ("id",), "drop", with_classes=True)
    ids = dict.fromkeys(row["id"] for row in rows if row["id"])
    classes = dict.fromkeys(row["class"] for row in rows if not row["id"])
    return tuple(ids), tuple(classes)


def classes_in(path: Path) -> dict[str, str]:
    """A CSV of id,class -> the class of each id."""
    class_of: dict[str, str] = {}
    for row in _rows_in(path, ("id", "class"), None):
        if class_of.setdefault(row["id"], row["class"]) != row["class"]:
            raise DataError(f"{path}: item {row['id']!r} has two classes; needed one")
    return class_of


def _rows_in(
    path: Path, columns: Sequence[str], only_action: str | None, *, with_classes: bool = False
) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in columns if name not in (table.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has the columns {', '.join(table.fieldnames or ()) or '(none)'}; needed a first line "
                    f"with {', '.join(columns)}"
                )
            by_action = only_action is not None and "action" in (table.fieldnames or ())
            rows = []
            for row in table:
                if any(row[name] is None for name in columns):
                    raise DataError(
                        f"{path} line {table.line_num}: found fewer cells than columns; needed {', '.join(columns)}"
                    )
                if not by_action or row["action"] == only_action:
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV with {', '.join(columns)}: {error}") from error
    rows = [row for row in rows if row["id"] or (with_classes and row.get("class"))]
    if not rows:
        what = f" with the action {only_action}" if by_action else ""
        raise DataError(f"{path} lists no item{what}; needed at least one")
    return rows


def spilled(folder: Path, items: ItemList, known: Sequence[str]) -> ItemList:
    """The same list, in a file beside dataset.json where it is long."""
    if len(items.ids) <= _IN_PLACE:
        return items
    columns = {"id": items.ids} | ({"class": items.classes} if items.classes else {})
    sink = io.BytesIO()
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    pq.write_table(table, sink, compression="zstd", compression_level=3, write_statistics=False)
    file = next_file("edit", "parquet", known)
    write_atomically(folder / file, sink.getvalue())
    return ItemList(file=file, sha256=hashlib.sha256(sink.getvalue()).hexdigest())


@contextmanager
def editing(folder: Path) -> Iterator[PackedDataset]:
    """The dataset, with its folder held so that nothing else writes it."""
    PackedDataset.open(folder)  # its error where there is none
    with hold(folder):
        yield PackedDataset.open(folder)


def _publish(dataset: PackedDataset, edit: Edit, notes: Sequence[str] = ()) -> CurateReport:
    """Append the edit to dataset.json, unless it would leave a split without a class."""
    info = replace(dataset.info, edits=(*dataset.info.edits, edit))
    edited = PackedDataset(dataset.folder, info, b"")
    before, after = census(dataset), census(edited)
    _check_nothing_emptied(dataset, edited, before, after)
    if not isinstance(edit, Undo | Erase):
        edit = replace(edit, n_items=_changed(curation_of(dataset), curation_of(edited)))
    stored = edit
    if isinstance(edit, DropItems | Relabel):
        stored = replace(edit, items=spilled(dataset.folder, edit.items, dataset.info.edit_files))
    _write_info(dataset.folder, replace(info, edits=(*dataset.info.edits, stored)))
    return CurateReport(
        folder=dataset.folder, number=len(info.edits), edit=edit, before=before, after=after, notes=tuple(notes)
    )


def _write_info(folder: Path, info: DatasetInfo) -> None:
    write_atomically(folder / INFO_FILE, info_json(info))


def _check_nothing_emptied(dataset: PackedDataset, edited: PackedDataset, before: Census, after: Census) -> None:
    emptied = [split for split in SPLITS if before.classes[split] and not after.classes[split]]
    if not emptied:
        return
    fullest = max(SPLITS, key=lambda split: after.classes[split])
    spare = [name for name in dataset.splits.of(fullest) if name in edited.splits.of(fullest)]
    if len(spare) < 2:
        raise DataError(f"this would leave {', '.join(emptied)} without a class; needed at least one in every split")
    raise DataError(
        f"this would leave {emptied[0]} without a class; needed at least one; next: kshot curate {dataset.name} "
        f"move-split {words(spare[:1])} --to {emptied[0]}"
    )


def _check_classes_are_there(dataset: PackedDataset, edits: Sequence[Edit]) -> None:
    """Raise DataError where an edit in force is about a class that the edits before it do not leave."""
    holds, state = in_force(edits), dataset.stored_curation
    for number, edit in enumerate(edits, start=1):
        if not holds[number - 1]:
            continue
        there = set(state.classes)
        missing = next((name for name in _classes_of(dataset, edit) if name not in there), None)
        if missing is not None:
            raise DataError(
                f"edit {number} is about the class {missing!r}, which would not be there; needed to undo it first; "
                f"next: kshot curate {dataset.name} undo {number}"
            )
        state = edit.apply(state, dataset.rows_of)


def _classes_of(dataset: PackedDataset, edit: Edit) -> Sequence[str]:
    """The classes that an edit takes to be there."""
    if isinstance(edit, Relabel):
        return [] if edit.new_in else list(dict.fromkeys(dataset.rows_of(edit.items)[1]))
    return edit.classes if isinstance(edit, DropItems | DropClasses | MoveSplit | MergeClasses) else ()


def _changed(before: Curation, after: Curation) -> int:
    """Items whose use, class or split is another now."""
    changed = (before.active != after.active) | ((before.class_of != after.class_of) & after.active)
    changed |= np.isin(after.class_of, _moved(before, after)) & after.active
    return int(changed.sum())


def _moved(before: Curation, after: Curation) -> Int:
    """Numbers of the classes whose split is another now."""
    pairs = zip(before.splits, after.splits, strict=False)
    return np.array([n for n, (old, now) in enumerate(pairs) if now and old != now], dtype=np.int64)


def _used_classes(state: Curation) -> dict[str, None]:
    counts = state.counts
    return {name: None for n, name in enumerate(state.classes) if counts[n] or state.splits[n]}


def _split_of(state: Curation, number: int) -> str:
    return ", ".join(state.splits[number])


def _ids(dataset: PackedDataset, rows: Int) -> tuple[str, ...]:
    return tuple(dataset.stored_ids.take(pa.array(rows)).to_pylist())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _alike(name: str, other: str) -> bool:
    return _composed(name).casefold() == _composed(other).casefold()


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known[:_COMPARED], n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _named(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{noun}{'' if len(names) == 1 else 'es'} {shown}{more} {'is' if len(names) == 1 else 'are'}"


def words(names: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, names))
