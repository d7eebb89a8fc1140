"""From a source to a packed dataset: read, check, convert, split, publish."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from kshot.data.difficulty import FOLDER as DIFFICULTY
from kshot.data.items import AnyItemKind, ImageKind
from kshot.data.items.contract import ItemKind, Read
from kshot.data.packed import INFO_FILE, Member, PackedDataset, Quarantined, Rotations, Splits, read_info
from kshot.errors import DataError
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.decoding import RangeRule, read_in_order, with_value_range
from kshot.ingest.source import Reading, Source, SourceFile
from kshot.ingest.sources import check_class_names, nothing_usable, open_source
from kshot.ingest.splits import SplitRequest, assign_splits, assign_without
from kshot.ingest.writer import SHARD_LIMIT_BYTES, PackedWriter, Record, write_atomically

OnProgress = Callable[[int, int], None]  # items done, items in all

QUARANTINE_FILE, LEFT_OUT_FILE = "quarantine.csv", "left_out.csv"
_OTHERS = {"weights": "pretrained weights", DIFFICULTY: "the errors of models"}  # beside the datasets
DEFAULT_ITEM = ImageKind(image_size=84, channels=3, jpeg="scaled")


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What an ingest did: items added and skipped (already there), files refused, and what is there now.

    `notes` say what was done to pictures that people should know of, and to how many, as in "3 of 60 pictures NOTE".
    """

    folder: Path
    added: int
    skipped: int
    quarantined: tuple[Quarantined, ...]
    n_items: int
    splits: Splits
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        return len(self.splits.by_class())


def _no_progress(done: int, total: int) -> None:
    pass


def ingest(
    source: Path,
    name: str,
    data_folder: Path,
    *,
    reading: Reading | None = None,
    item: AnyItemKind | None = None,
    rotations: Rotations | None = None,
    licence: str = "",
    splits: SplitRequest | None = None,
    find_range: RangeRule = "extremes",
    min_images: int = 0,
    progress: OnProgress = _no_progress,
    shard_limit_bytes: int = SHARD_LIMIT_BYTES,
) -> IngestReport:
    """Open the source at the path `source`, read as `reading` says, and `pack` it."""
    with open_source(source, reading) as opened:
        return pack(
            opened,
            name,
            data_folder,
            item=item,
            rotations=rotations,
            licence=licence,
            splits=splits,
            find_range=find_range,
            min_images=min_images,
            progress=progress,
            shard_limit_bytes=shard_limit_bytes,
        )


def pack(
    source: Source,
    name: str,
    data_folder: Path,
    *,
    item: AnyItemKind | None = None,
    rotations: Rotations | None = None,
    licence: str = "",
    splits: SplitRequest | None = None,
    find_range: RangeRule = "extremes",
    min_images: int = 0,
    progress: OnProgress = _no_progress,
    shard_limit_bytes: int = SHARD_LIMIT_BYTES,
) -> IngestReport:
    """Pack the items of `source` into data_folder/name, or append those that are new.

    `item` and `rotations` default to those of the dataset when it exists, else to 84x84 colour without rotations.
    Where the dataset is new, its splits are drawn over the classes of at least `min_images` items.
    The value range of pictures deeper than 8 bits is that of `item` or of the dataset, or is found by `find_range`.
    Damaged files are listed in dataset.json and quarantine.csv, other files of the source in left_out.csv. Raise
    DataError when nothing usable remains, and for whatever would make the dataset ambiguous; it is then as it was.
    """
    folder = dataset_folder(data_folder, name)
    before = read_info(folder) if (folder / INFO_FILE).is_file() else None
    item = with_value_range(
        item or (before.item if before else DEFAULT_ITEM), source.files, find_range, before.item if before else None
    )
    rotations = rotations or (before.rotations if before else (0,))
    splits = splits or SplitRequest()
    with PackedWriter(
        folder,
        item=item,
        source=source.name,
        licence=licence,
        rotations=rotations,
        domain_level=source.domain_level,
        shard_limit_bytes=shard_limit_bytes,
    ) as writer:
        moved = PackedDataset.open(folder).splits.by_class() if before and before.edits else {}
        examples = {file.class_name: file.id for file in reversed(source.files)}
        check_class_names([*writer.class_groups, *moved, *reversed(examples)], examples)
        refused = [Quarantined(source=row.source, reason=row.reason) for row in source.refused]
        notes = Counter[str]()
        refused += _add_files(writer, source, item, progress, notes)
        quarantined = tuple(sorted(refused, key=lambda row: row.source))
        if writer.added + writer.skipped == 0:
            raise DataError(nothing_usable(source, quarantined))
        given = {**source.given_splits, **splits.given}
        given = {name: split for name, split in given.items() if moved.get(name) != split}
        seen = {*source.given_splits, *(file.class_name for file in source.files)}
        emptied = seen - writer.class_groups.keys()  # no file of theirs is usable
        given = {name: split for name, split in given.items() if name not in emptied}
        lost = {row.source for row in quarantined}
        sizes = Counter(file.class_name for file in source.files if file.id not in lost)
        small = [name for name, size in sizes.items() if size < min_images] if writer.before is None else []
        if small:
            assigned = assign_without(small, writer.class_groups, given=given, plan=splits.seeded)
        else:
            before_splits = writer.before.splits if writer.before else None
            assigned = assign_splits(
                writer.class_groups,
                given=given,
                plan=splits.seeded,
                before=before_splits,
                curated=moved,
                draw=splits.draw,
            )
        write_table(folder / LEFT_OUT_FILE, [(row.source, str(row.reason)) for row in source.left_out])
        return _publish(writer, assigned, quarantined, notes)


def ingest_built_in(
    built_in: BuiltIn,
    name: str,
    data_folder: Path,
    *,
    progress: OnProgress = _no_progress,
    members: tuple[Member, ...] = (),
    shard_limit_bytes: int = SHARD_LIMIT_BYTES,
) -> IngestReport:
    """Make or fetch a built-in dataset into data_folder/name. Raise DataError when it cannot be had.

    `members` are those of a union.
    """
    with PackedWriter(
        dataset_folder(data_folder, name),
        item=built_in.item,
        source=built_in.source,
        licence=built_in.licence,
        rotations=built_in.rotations,
        domain_level=built_in.domain_level,
        members=members,
        shard_limit_bytes=shard_limit_bytes,
    ) as writer:
        for done, record in enumerate(built_in.records(), start=1):
            writer.add(record)
            progress(done, built_in.n_items)
        return _publish(writer, built_in.splits(), (), {})


def dataset_folder(data_folder: Path, name: str) -> Path:
    """data_folder/name; DataError for a name that no dataset may have."""
    check_name(name)
    if name in _OTHERS:
        raise DataError(f"found dataset name {name!r}, where {_OTHERS[name]} lie; needed another name")
    return data_folder / name


def check_name(name: str, what: str = "dataset name") -> None:
    """Raise DataError unless `name` is letters, digits, '.', '_' and '-', and begins with no dot."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum()) or name.startswith((".", "-")):
        raise DataError(f"found {what} {name!r}; needed ASCII letters, digits, '.', '_' and '-'")


def _add_files(
    writer: PackedWriter, source: Source, item: ItemKind, progress: OnProgress, notes: Counter[str]
) -> Iterator[Quarantined]:
    """Add every readable file in order of id and count what is noted of them; yield the others."""
    with closing(read_in_order(item, source.files)) as outcomes:
        for done, (file, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, Read):
                writer.add(_record(file, outcome, source.name))
                for note in outcome.notes:
                    notes[note] += 1
            else:
                yield Quarantined(source=file.id, reason=outcome)
            progress(done, len(source.files))


def _record(file: SourceFile, decoded: Read, source_name: str) -> Record:
    return Record(
        id=file.id,
        class_name=file.class_name,
        group=file.group,
        item=decoded.item,
        source=source_name,
        original=decoded.original,
    )


def _publish(
    writer: PackedWriter, splits: Splits, quarantined: tuple[Quarantined, ...], notes: Mapping[str, int]
) -> IngestReport:
    write_table(writer.folder / QUARANTINE_FILE, [(row.source, row.reason) for row in quarantined])
    info = writer.publish(splits, quarantined)
    return IngestReport(
        folder=writer.folder,
        added=writer.added,
        skipped=writer.skipped,
        quarantined=quarantined,
        n_items=info.n_items,
        splits=info.splits,
        notes=notes,
    )


def write_table(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Files that are no items, with the reasons, as a table for people; none where there are none."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    lines = map(_table_line, [("source", "reason"), *rows])
    write_atomically(path, "".join(lines).encode())


def _table_line(row: tuple[str, str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row)  # it quotes no carriage return that ends no line
    return text.getvalue().removesuffix("\r\n") + "\n"
