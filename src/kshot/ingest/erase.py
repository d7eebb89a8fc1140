"""Erases items for good, such as pictures of people who asked for it: from the shards, the manifest and the edits.

Every other edit leaves the bytes in their shard. Here the shards that hold an erased item are written again without it,
under new names, then the manifest and the lists of edits, and dataset.json last; the old files go when it has been
replaced. So a dataset is as before or without the items, and never between the two.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kshot.data.class_table import Int
from kshot.data.edits import DropClasses, DropItems, Edit, Erase, ItemList, MergeClasses, MoveSplit, Relabel
from kshot.data.packed import (
    INFO_FILE,
    MANIFEST_FILE,
    SPLITS,
    PackedDataset,
    Shard,
    Splits,
    info_json,
    item_table,
    npy_header,
)
from kshot.errors import DataError
from kshot.ingest.curate import Census, census, curation_of, editing, known_classes, known_rows, spilled
from kshot.ingest.pack import LEFT_OUT_FILE, QUARANTINE_FILE, write_table
from kshot.ingest.writer import manifest_parquet, next_file, write_atomically

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EraseReport:
    folder: Path
    erased: int
    before: Census
    after: Census


def rows_to_erase(dataset: PackedDataset, ids: Sequence[str], classes: Sequence[str]) -> Int:
    """Stored rows of the items named, in use or not, and of all items of the classes named.

    The items of a class that was merged into another are those that were ingested as it.
    """
    rows = known_rows(dataset, ids) if ids else np.zeros(0, dtype=np.int64)
    now, stored = curation_of(dataset), dataset.stored_curation
    for name in known_classes(dataset, classes, in_use=False) if classes else ():
        number = now.numbers([name])
        of_class = np.flatnonzero(now.class_of == number)
        rows = np.union1d(rows, of_class if len(of_class) else np.flatnonzero(stored.class_of == number))
    if not len(rows):
        raise DataError(f"found no stored item of {', '.join(map(repr, classes))}; needed at least one to erase")
    return rows


def erase(folder: Path, ids: Sequence[str], classes: Sequence[str], reason: str = "") -> EraseReport:
    """Write the dataset anew without these items. Raises DataError, before it writes, where none would stay."""
    with editing(folder) as dataset:
        rows = rows_to_erase(dataset, ids, classes)
        if len(rows) == dataset.info.n_items:
            raise DataError(f"this would erase every item of {dataset.name}; next: rm -r {folder}, which does so")
        gone = np.zeros(dataset.info.n_items, dtype=np.bool_)
        gone[rows] = True
        known = [*(shard.file for shard in dataset.info.shards), dataset.info.manifest, *dataset.info.edit_files]
        erased_classes = _emptied_classes(dataset, gone)
        is_kept = _keeper(dataset, gone)
        info = replace(
            dataset.info,
            quarantined=tuple(row for row in dataset.info.quarantined if is_kept(row.source)),
            shards=_shards_without(dataset, gone, known),
            manifest=_manifest_without(dataset, gone, known),
            splits=_splits_without(dataset.info.splits, erased_classes),
            edits=(
                *_edits_without(dataset, gone, erased_classes, known),
                Erase(n_items=len(rows), reason=reason),
            ),
        )
        write_atomically(folder / INFO_FILE, info_json(info))
        for file in (QUARANTINE_FILE, LEFT_OUT_FILE):
            _forget(folder / file, is_kept)
        after = PackedDataset.open(folder)
        return EraseReport(folder=folder, erased=len(rows), before=census(dataset), after=census(after))


def _shards_without(dataset: PackedDataset, gone: Mask, known: list[str]) -> tuple[Shard, ...]:
    shards, start = [], 0
    for shard in dataset.info.shards:
        here = gone[start : start + shard.items]
        start += shard.items
        if not here.any():
            shards.append(shard)
        elif not here.all():
            kept = np.load(dataset.folder / shard.file, mmap_mode="r")[~here]
            file = next_file("items", "npy", known)
            known.append(file)
            sha256 = write_atomically(dataset.folder / file, npy_header(len(kept), dataset.item), kept.tobytes())
            shards.append(Shard(file=file, items=len(kept), sha256=sha256))
    return tuple(shards)


def _manifest_without(dataset: PackedDataset, gone: Mask, known: list[str]) -> str:
    kept = dataset.stored_manifest.filter(pa.array(~gone))
    file = next_file(MANIFEST_FILE.removesuffix(".parquet"), "parquet", known)
    write_atomically(dataset.folder / file, manifest_parquet(kept, dataset.item))
    return file


def _emptied_classes(dataset: PackedDataset, gone: Mask) -> frozenset[str]:
    """Names of which nothing is left among the stored items: they go too, for a class may be a person."""
    stored, now = dataset.stored_curation, curation_of(dataset)
    left = np.union1d(stored.class_of[~gone], now.class_of[~gone])
    of_gone = np.union1d(stored.class_of[gone], now.class_of[gone])
    return frozenset(now.classes[number] for number in np.setdiff1d(of_gone, left).tolist())


def _keeper(dataset: PackedDataset, gone: Mask) -> Callable[[str], bool]:
    """Whether a file that is no item may stay listed: not where everything that lay beside it is erased."""
    ids = dataset.stored_ids
    erased, kept = (ids.filter(pa.array(mask)).to_pylist() for mask in (gone, ~gone))
    folders = {name.rpartition("/")[0] for name in erased} - {name.rpartition("/")[0] for name in kept} - {""}
    return lambda source: source.rpartition("/")[0] not in folders and source not in folders


def _forget(path: Path, is_kept: Callable[[str], bool]) -> None:
    """Write a table of files anew without those that are not kept."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if is_kept(row["source"])]
    write_table(path, [(row["source"], row["reason"]) for row in rows])


def _splits_without(splits: Splits, emptied: frozenset[str]) -> Splits:
    kept = {split: tuple(name for name in splits.of(split) if name not in emptied) for split in SPLITS}
    return Splits(meta_train=kept["meta_train"], meta_val=kept["meta_val"], meta_test=kept["meta_test"])


def _edits_without(dataset: PackedDataset, gone: Mask, emptied: frozenset[str], known: list[str]) -> list[Edit]:
    """Every edit keeps its number, also one that says nothing any more."""
    erased_ids = set(dataset.stored_ids.filter(pa.array(gone)).to_pylist())
    edits: list[Edit] = []
    for edit in dataset.info.edits:
        if isinstance(edit, DropItems):
            left = tuple(name for name in edit.classes if name not in emptied)
            edits.append(replace(edit, items=_list_without(dataset, edit.items, erased_ids, known), classes=left))
        elif isinstance(edit, Relabel):
            edits.append(replace(edit, items=_list_without(dataset, edit.items, erased_ids, known)))
        elif isinstance(edit, MergeClasses) and edit.into in emptied:
            edits.append(replace(edit, classes=(), into=""))
        elif isinstance(edit, DropClasses | MoveSplit | MergeClasses):
            edits.append(replace(edit, classes=tuple(name for name in edit.classes if name not in emptied)))
        else:
            edits.append(edit)
    return edits


def _list_without(dataset: PackedDataset, items: ItemList, erased_ids: set[str], known: list[str]) -> ItemList:
    table = item_table(dataset.folder, items)
    ids = table["id"].to_pylist()
    classes = table["class"].to_pylist() if "class" in table.column_names else []
    kept = [n for n, name in enumerate(ids) if name not in erased_ids]
    if len(kept) == len(ids):
        return items
    shorter = spilled(
        dataset.folder,
        ItemList(ids=tuple(ids[n] for n in kept), classes=tuple(classes[n] for n in kept if classes)),
        known,
    )
    known += [shorter.file] if shorter.file else []
    return shorter
