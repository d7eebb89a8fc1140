"""Writes packed datasets: begins one, or appends to one, without ever rewriting a shard."""

import fcntl
import hashlib
import io
import os
import shlex
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kshot.data.edits import Curation
from kshot.data.items import AnyItemKind
from kshot.data.items.contract import ItemKind, item_size_bytes
from kshot.data.packed import (
    INFO_FILE,
    MANIFEST_FILE,
    DatasetInfo,
    Member,
    PackedDataset,
    Quarantined,
    Rotations,
    Shard,
    Splits,
    check_rotations,
    info_json,
    manifest_schema,
    npy_header,
    read_info,
    read_manifest,
)
from kshot.errors import DataError
from kshot.printing import listed

SHARD_LIMIT_BYTES = 256 * 2**20
_OURS = ("items-*.npy", "edit-*.parquet", "manifest*.parquet")
_DISTINCT = ("id", "sha256")  # of the text columns of a manifest, those that repeat no value
_CHUNK_BYTES = 2**30  # of a text column; Arrow addresses 2**31
_ROWS_AT_ONCE = 2**12


@dataclass(frozen=True, kw_only=True)
class Record:
    """An item (*item) on its way into a packed dataset, and what the item's kind keeps of the original."""

    id: str
    class_name: str
    group: str
    item: NDArray[Any]
    source: str
    original: Mapping[str, int | str] = field(default_factory=dict)


class PackedWriter:
    """Appends records to the packed dataset in `folder`, or begins one.

    Use as a context manager: `add` every record, then `publish`. Leaving without `publish` removes what
    was written and the dataset stays as it was. One writer at a time holds the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        item: AnyItemKind,
        source: str,
        licence: str,
        rotations: Rotations = (0,),
        domain_level: int | None = None,
        members: tuple[Member, ...] = (),
        shard_limit_bytes: int = SHARD_LIMIT_BYTES,
    ) -> None:
        check_rotations(item, rotations)
        self.folder = folder
        self.class_groups: dict[str, str] = {}  # every class, old and new, with its group
        self.before: DatasetInfo | None = None  # as published when this writer took the folder
        self.added = self.skipped = 0
        self._item, self._rotations, self._source, self._licence = item, rotations, source, licence
        self._domain_level, self._members = domain_level, members
        self._items_per_shard = max(shard_limit_bytes // item_size_bytes(item), 1)
        self._rows_before: pa.Table = pa.Table.from_batches([], schema=manifest_schema(item))  # no import of pandas
        self._columns = {field.name: _column(field.type) for field in manifest_schema(item)}  # of the new rows
        self._row: dict[str, int] = {}  # id -> its row, old or new
        self._shards: list[Shard] = []
        self._pending, self._n_pending = bytearray(), 0
        self._version = 1

    def __enter__(self) -> Self:
        """Raise DataError when another writer has the folder, or it holds items of another kind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder)
        try:
            if (self.folder / INFO_FILE).is_file():
                self._continue(read_info(self.folder))
            sweep(self.folder)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sweep(self.folder)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
        os.close(self._lock)

    def add(self, record: Record) -> bool:
        """Append one record; False when the very same item is already there.

        Raise DataError when its id is known with other content or another class, or its class with
        another group.
        """
        self._check_fits(record)
        content = record.item.tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if record.id in self._row:
            self._check_same(record, sha256)
            self.skipped += 1
            return False
        self._check_group(record)
        self._row[record.id] = len(self._row)
        self.class_groups[record.class_name] = record.group
        row: dict[str, str | int] = {
            "id": record.id,
            "class": record.class_name,
            "group": record.group,
            "sha256": sha256,
            "source": record.source,
            "version": self._version,
            **record.original,
        }
        for name, column in self._columns.items():
            column.append(row[name])
        self._pending += content
        self._n_pending += 1
        self.added += 1
        if self._n_pending == self._items_per_shard:
            self._write_shard()
        return True

    def publish(self, splits: Splits, quarantined: tuple[Quarantined, ...] = ()) -> DatasetInfo:
        """Make the records visible: last shard, manifest, and dataset.json last."""
        if not self._row:
            raise DataError(f"no item to write into {self.folder}; needed at least one")
        if self._n_pending:
            self._write_shard()
        before = self.before.shards if self.before else ()
        info = DatasetInfo(
            name=self.folder.name,
            source=self._source,
            licence=self._licence,
            item=self._item,
            rotations=self._rotations,
            splits=splits,
            shards=(*before, *self._shards),
            quarantined=quarantined,
            edits=self.before.edits if self.before else (),
            manifest=self.before.manifest if self.before else MANIFEST_FILE,
            domain_level=self._domain_level,
            members=self._members,
        )
        if self.added or self._manifest_is_ahead(info):
            write_atomically(self.folder / info.manifest, manifest_parquet(self._all_rows(), self._item))
        write_atomically(self.folder / INFO_FILE, info_json(info))
        return info

    def _continue(self, before: DatasetInfo) -> None:
        if before.members and not self._members:
            united = [member.name for member in before.members]
            raise DataError(
                f"{self.folder} is the union of {listed(united, len(united))}; needed a dataset of its own; "
                f"next: ingest under another --name, or under --name {united[-1]} and then kshot unite"
            )
        if before.item != self._item or before.rotations != self._rotations:
            raise DataError(
                f"{self.folder} holds {_kind(before.item, before.rotations)}, "
                f"not {_kind(self._item, self._rotations)}; "
                f"{self._next('append with the same settings, or ingest under a new --name')}"
            )
        if self._domain_level is None:
            self._domain_level = before.domain_level
        if before.domain_level != self._domain_level:
            raise DataError(
                f"{self.folder} was ingested with {_domains(before.domain_level)}, and this source has "
                f"{_domains(self._domain_level)}; append with the same layout, or ingest under a new --name"
            )
        rows = self._rows_before = read_manifest(self.folder, before)
        self.before = before
        self.class_groups = dict(zip(rows["class"].to_pylist(), rows["group"].to_pylist(), strict=True))
        self._row = {name: row for row, name in enumerate(rows["id"].to_pylist())}
        self._version = max(rows["version"].to_pylist()) + 1
        if not self._members:  # a union says what it is now
            self._source, self._licence = _joined(before.source, self._source), _joined(before.licence, self._licence)

    def _manifest_is_ahead(self, info: DatasetInfo) -> bool:
        """Whether the manifest holds rows of an ingest that ended before it wrote dataset.json."""
        rows: int = pq.read_metadata(self.folder / info.manifest).num_rows
        return rows != len(self._row)

    def _check_fits(self, record: Record) -> None:
        """Raise ValueError for a record of another kind of item: a mistake of the caller, not of the data."""
        item, needed = record.item, self._item
        if item.shape != needed.shape or item.dtype != needed.dtype:
            raise ValueError(
                f"{record.id}: the item is {item.dtype} {item.shape}; the dataset holds {needed.dtype} {needed.shape}"
            )
        if record.original.keys() != self._item.original.keys():
            raise ValueError(
                f"{record.id}: of the original it gives {', '.join(record.original) or 'nothing'}; "
                f"the dataset keeps {', '.join(self._item.original) or 'nothing'}"
            )

    def _check_same(self, record: Record, sha256: str) -> None:
        known_sha256, known_class = (self._cell(name, self._row[record.id]) for name in ("sha256", "class"))
        if known_sha256 != sha256:
            raise DataError(
                f"item {record.id!r} is already in {self.folder} with other content "
                f"(sha256 {known_sha256[:12]}, now {sha256[:12]}); "
                f"{self._next('needed a new name for a new item')}"
            )
        if record.class_name not in (known_class, self._class_now(self._row[record.id])):
            words = f"{shlex.quote(record.id)} --to {shlex.quote(record.class_name)}"
            is_known = record.class_name in self.class_groups
            relabel = f"next: kshot curate {self.folder.name} relabel {words}, then ingest again"
            raise DataError(
                f"item {record.id!r} is already in {self.folder} as class {known_class!r}, now "
                f"{record.class_name!r}; "
                f"{self._next(relabel if is_known else 'to relabel, ingest under a new --name')}"
            )

    def _next(self, advice: str) -> str:
        """The end of a refusal of what is not as it was before: `advice`, and for a union how to make it anew."""
        return remade(self.folder) if self._members else advice

    def _class_now(self, row: int) -> str | None:
        """The class that the edits give an item that was there before; None where they give it none."""
        after = self._curation
        return after.classes[after.class_of[row]] if after and row < len(after.class_of) else None

    @cached_property
    def _curation(self) -> Curation | None:
        return PackedDataset(self.folder, self.before, b"").curation if self.before else None

    def _cell(self, column: str, row: int) -> Any:
        n_before = len(self._rows_before)
        return self._rows_before[column][row].as_py() if row < n_before else self._columns[column][row - n_before]

    def _check_group(self, record: Record) -> None:
        group = self.class_groups.get(record.class_name, record.group)
        if group != record.group:
            raise DataError(
                f"class {record.class_name!r} is in group {group!r}, but {record.id!r} says {record.group!r}; "
                "needed one group a class"
            )

    def _write_shard(self) -> None:
        before = self.before.shards if self.before else ()
        file = next_file("items", "npy", [shard.file for shard in (*before, *self._shards)])
        sha256 = write_atomically(self.folder / file, npy_header(self._n_pending, self._item), self._pending)
        self._shards.append(Shard(file=file, items=self._n_pending, sha256=sha256))
        self._pending, self._n_pending = bytearray(), 0

    def _all_rows(self) -> pa.Table:
        """The rows before and the new ones."""
        columns = [column.arrow() for column in self._columns.values()]
        new = pa.Table.from_arrays(columns, schema=manifest_schema(self._item))
        return pa.concat_tables([self._rows_before, new]) if len(self._rows_before) else new


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the one writer of the dataset in `folder`. Raises DataError while another is."""
    descriptor = _lock(folder)
    try:
        sweep(folder)
        yield
    finally:
        sweep(folder)
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what a crashed or abandoned writer left: temporary files, and those that dataset.json does not list."""
    info = read_info(folder) if (folder / INFO_FILE).is_file() else None
    listed = {*(shard.file for shard in info.shards), *info.edit_files, info.manifest} if info else set()
    for path in folder.iterdir():
        orphan = any(path.match(ours) for ours in _OURS) and path.name not in listed
        if orphan or path.name.endswith(".tmp"):
            path.unlink()


def remade(folder: Path) -> str:
    """How to make the union in `folder` anew, as the end of an error."""
    return f"next: rm -r {shlex.quote(str(folder))} && kshot unite, or set another dataset.name"


def next_file(stem: str, suffix: str, known: Iterable[str]) -> str:
    """The name of the next file of a series, such as items-00003.npy after items-00002.npy; from 0."""
    numbers = [int(name.removeprefix(f"{stem}-").partition(".")[0]) for name in known if name.startswith(f"{stem}-")]
    return f"{stem}-{max(numbers, default=-1) + 1:05d}.{suffix}"


def write_atomically(path: Path, *parts: bytes | bytearray) -> str:
    """Write `parts` to a temporary file, flush it to the disk, rename it to `path`; the sha256 of it all."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    with _folder(path.parent) as descriptor:
        os.fsync(descriptor)
    return digest.hexdigest()


def _kind(item: ItemKind, rotations: Rotations) -> str:
    return f"{item} with rotations {', '.join(map(str, rotations))}"


def _lock(folder: Path) -> int:
    """An exclusive lock on the folder itself, so that no lock file is versioned with the data."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as busy:
        os.close(descriptor)
        raise DataError(f"another command is writing {folder}; wait for it to end") from busy
    return descriptor


@contextmanager
def _folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _domains(level: int | None) -> str:
    return "no domains" if level is None else f"domains in part {level + 1} of the ids"


def manifest_parquet(rows: pa.Table, item: ItemKind) -> bytes:
    """The same rows always give the same bytes: no pandas metadata, no statistics, fixed encodings."""
    sink = io.BytesIO()
    schema = manifest_schema(item)
    repeated = [field.name for field in schema if field.type == pa.string() and field.name not in _DISTINCT]
    pq.write_table(
        rows.combine_chunks(),
        sink,
        compression="zstd",
        compression_level=3,
        use_dictionary=repeated,
        write_statistics=False,
    )
    return sink.getvalue()


class _Texts:
    """A column of texts as Arrow holds them, end to end in UTF-8: a fifth of what Python's own strings take."""

    def __init__(self) -> None:
        self._full: list[pa.Array] = []
        self._n_full = 0
        self._bytes, self._ends = bytearray(), array("i", [0])
        self._waiting: list[str] = []

    def append(self, text: str) -> None:
        self._waiting.append(text)
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._store()

    def __getitem__(self, row: int) -> Any:
        self._store()
        row -= self._n_full
        if row < 0:
            return pa.chunked_array(self._full)[row + self._n_full].as_py()
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode()

    def arrow(self) -> pa.ChunkedArray:
        self._store()
        return pa.chunked_array([*self._full, self._chunk()], type=pa.string())

    def _store(self) -> None:
        if len(self._bytes) >= _CHUNK_BYTES:
            self._full.append(self._chunk())
            self._n_full += len(self._ends) - 1
            self._bytes, self._ends = bytearray(), array("i", [0])
        texts = [text.encode() for text in self._waiting]
        self._ends.extend(accumulate(map(len, texts), initial=self._ends.pop()))
        self._bytes += b"".join(texts)
        self._waiting = []

    def _chunk(self) -> pa.Array:
        ends, texts = pa.py_buffer(memoryview(self._ends)), pa.py_buffer(self._bytes)
        return pa.StringArray.from_buffers(len(self._ends) - 1, ends, texts)


class _Numbers:
    """A column of int32."""

    def __init__(self) -> None:
        self._values = array("i")

    def append(self, number: int) -> None:
        self._values.append(number)

    def __getitem__(self, row: int) -> Any:
        return self._values[row]

    def arrow(self) -> pa.ChunkedArray:
        buffers = [None, pa.py_buffer(memoryview(self._values))]
        return pa.chunked_array([pa.Array.from_buffers(pa.int32(), len(self._values), buffers)])


def _column(kind: pa.DataType) -> Any:
    return _Texts() if kind == pa.string() else _Numbers()


def _joined(before: str, now: str) -> str:
    """`now` after `before`, unless it is there already."""
    if f"; {now};" in f"; {before};":
        return before
    return "; ".join(part for part in (before, now) if part)
