"""Several packed datasets as one, so that everything that takes a dataset takes a union.

The ids, classes and groups of an item begin with the name of the dataset that it is from, its member, which is also its
domain. A class keeps the split that it has in its member. Images of another size or colour than those of the first
member are brought to them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kshot.data.items.depth import range_text
from kshot.data.items.image import ImageKind, to_item
from kshot.data.packed import INFO_FILE, SPLITS, PackedDataset, Rotations, Splits, read_info
from kshot.data.union import as_member
from kshot.errors import DataError
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.pack import IngestReport, OnProgress, dataset_folder, ingest_built_in
from kshot.ingest.writer import Record, remade
from kshot.printing import counted, listed

_ITEMS_AT_ONCE = 256

Pack = Callable[[NDArray[Any]], NDArray[Any]]


def unite(members: Sequence[str], name: str, data_folder: Path, *, progress: OnProgress) -> IngestReport | None:
    """Make the union of the datasets `members` in data_folder/name, or add what is new; None where it is up to date.

    Raises DataError for members that do not go together, and where the folder holds what no member has.
    """
    datasets = [PackedDataset.open(data_folder / member) for member in members]
    folder = dataset_folder(data_folder, name)
    now = tuple(map(as_member, datasets))
    before = read_info(folder) if (folder / INFO_FILE).is_file() else None
    if before is not None and not before.members:
        raise DataError(f"{folder} is a dataset of its own; needed the name of a union; next: set another dataset.name")
    if before is not None and before.members == now:
        return None
    united = _union(datasets)
    if before is not None:
        _check_only_grown(PackedDataset.open(folder), datasets)
    return ingest_built_in(united, name, data_folder, progress=progress, members=now)


def _union(members: Sequence[PackedDataset]) -> BuiltIn:
    first = members[0]
    packs = [_pack(first, member) for member in members]
    rotations = {member.info.rotations for member in members}
    stored_as_they_are = len(rotations) == 1
    kept = first.info.rotations if stored_as_they_are else (0,)

    def records() -> Iterator[Record]:
        for member, pack in zip(members, packs, strict=True):
            yield from _records(member, pack, kept)

    return BuiltIn(
        item=first.item,
        rotations=kept,
        domain_level=0,
        source=f"union of {', '.join(member.name for member in members)}",
        licence="; ".join(dict.fromkeys(f"{member.name}: {member.info.licence or 'not said'}" for member in members)),
        n_items=sum(member.n_stored * _n_turns(member, kept) for member in members),
        records=records,
        splits=lambda: _splits(members, kept),
    )


def _pack(first: PackedDataset, member: PackedDataset) -> Pack:
    """What makes an item of `member` one of the union."""
    wanted, found = first.item, member.item
    if isinstance(wanted, ImageKind) and isinstance(found, ImageKind):
        _check_value_range(first, wanted, member, found)
    if wanted.shape == found.shape and wanted.dtype == found.dtype and type(wanted) is type(found):
        return lambda item: item
    if not (isinstance(wanted, ImageKind) and isinstance(found, ImageKind)):
        raise DataError(
            f"{first.name} holds {wanted} and {member.name} {found}, which do not go together; needed one kind of "
            f"item; next: take {member.name} out of dataset.of"
        )
    kind = replace(wanted, invert=False, fit="stretch", jpeg="full")
    return lambda item: to_item(Image.fromarray(item[:, :, 0] if found.channels == 1 else item), kind)


def _check_value_range(first: PackedDataset, wanted: ImageKind, member: PackedDataset, found: ImageKind) -> None:
    """Raise DataError where pictures deeper than 8 bits would be read in one way for one member and not the other."""
    needed = wanted.value_range or found.value_range
    if needed is None or wanted.value_range == found.value_range:
        return
    shown = ["no value range" if kind.value_range is None else range_text(kind.value_range) for kind in (wanted, found)]
    other = first if wanted.value_range is None else member
    raise DataError(
        f"{first.name} has {shown[0]} and {member.name} {shown[1]}; needed one range of values in a union; "
        f"next: kshot ingest SOURCE --name {other.name}-ranged --range {needed[0]:.15g}:{needed[1]:.15g}, and name "
        "that in dataset.of"
    )


def _records(member: PackedDataset, pack: Pack, kept: Rotations) -> Iterator[Record]:
    manifest, original = member.manifest, tuple(member.item.original)
    for start in range(0, member.n_stored * _n_turns(member, kept), _ITEMS_AT_ONCE):
        indices = np.arange(start, min(start + _ITEMS_AT_ONCE, member.n_stored * _n_turns(member, kept)))
        items = member.gather(indices)
        turns, rows = np.divmod(indices, member.n_stored)
        columns = manifest.take(rows).to_pydict()
        for number, item in enumerate(items):
            turn = _turn(member, kept, int(turns[number]))
            name, group = columns["class"][number], columns["group"][number]
            yield Record(
                id=f"{member.name}/{columns['id'][number]}{turn}",
                class_name=f"{member.name}/{name}{turn}",
                group=f"{member.name}/{group}" if group else member.name,
                item=pack(item),
                source=columns["source"][number],
                original={key: columns[key][number] for key in original},
            )


def _splits(members: Sequence[PackedDataset], kept: Rotations) -> Splits:
    def of(split: str) -> tuple[str, ...]:
        return tuple(
            f"{member.name}/{name}{_turn(member, kept, turn)}"
            for member in members
            for name in member.splits.of(split)
            for turn in range(_n_turns(member, kept))
        )

    by_name = {split: of(split) for split in SPLITS}
    return Splits(meta_train=by_name["meta_train"], meta_val=by_name["meta_val"], meta_test=by_name["meta_test"])


def _n_turns(member: PackedDataset, kept: Rotations) -> int:
    """How many times an item of `member` is stored: once where the union turns it itself."""
    return 1 if member.info.rotations == kept else len(member.info.rotations)


def _turn(member: PackedDataset, kept: Rotations, number: int) -> str:
    return f"/rot{member.info.rotations[number]:03d}" if _n_turns(member, kept) > 1 else ""


def _check_only_grown(before: PackedDataset, members: Sequence[PackedDataset]) -> None:
    """Raise DataError where the union uses items that are no longer in a member, or that of another one."""
    kept = before.info.rotations
    there = {
        f"{member.name}/{item}{_turn(member, kept, turn)}"
        for member in members
        for item in member.manifest["id"].to_pylist()
        for turn in range(_n_turns(member, kept))
    }
    gone = [name for name in before.manifest["id"].to_pylist() if name not in there]
    if gone:
        raise DataError(
            f"{before.folder} holds {counted(len(gone), 'item')} that its members no longer have, such as "
            f"{listed(gone, 1)}; needed a union of these members; {remade(before.folder)}"
        )
