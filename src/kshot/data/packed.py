"""The packed dataset: shards of items, a manifest with one row per item, and dataset.json.

A folder is only ever appended to: new shards, then the manifest with the new rows at its end, then
dataset.json. Until dataset.json is replaced the folder still reads as the version before, because a
reader takes the shards that dataset.json lists and as many manifest rows as those shards hold. What the
edits in dataset.json leave out or call otherwise (`kshot.data.edits`) is so for every reader.

What an item is, the item's kind knows (`kshot.data.items`).

Shapes: n items in use, *item the shape of one, R rotations, C classes (rotations included).
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as settings

from kshot.data.class_table import ClassTable, Int
from kshot.data.edits import Curation, DropItems, Edit, ItemList, Relabel, applied
from kshot.data.items import AnyItemKind
from kshot.data.items.contract import ItemKind, Turnable, item_size_bytes
from kshot.errors import DataError
from kshot.settings import STRICT

if TYPE_CHECKING:
    from torch import Tensor

Rotations = tuple[Literal[0, 90, 180, 270], ...]  # degrees, counter-clockwise

SPLITS = ("meta_train", "meta_val", "meta_test")
FORMAT_VERSION = 1
RESIDENT_LIMIT_BYTES = 2**30  # a dataset up to this size is read into memory at its first gather

_HASHED_AT_ONCE = 2**16  # values of the manifest
MANIFEST_FILE, INFO_FILE = "manifest.parquet", "dataset.json"
_RESTORE = "next: dvc checkout --force data.dvc, or remove the folder and ingest again"


@settings(frozen=True, kw_only=True, config=STRICT)
class Shard:
    file: str
    items: int
    sha256: str


@settings(frozen=True, kw_only=True, config=STRICT)
class Quarantined:
    """A file that the last ingest refused, by its path in the source, and why."""

    source: str
    reason: str


@settings(frozen=True, kw_only=True, config=STRICT)
class Member:
    """A dataset that a union was made of, and its content hash then."""

    name: str
    content_hash: str


@settings(frozen=True, kw_only=True, config=STRICT)
class Splits:
    """Base class names of each split; a class is in exactly one."""

    meta_train: tuple[str, ...] = ()
    meta_val: tuple[str, ...] = ()
    meta_test: tuple[str, ...] = ()

    def of(self, split: str) -> tuple[str, ...]:
        by_name = {"meta_train": self.meta_train, "meta_val": self.meta_val, "meta_test": self.meta_test}
        if split not in by_name:
            raise DataError(f"no class split {split!r}; needed one of {', '.join(SPLITS)}")
        return by_name[split]

    def by_class(self) -> dict[str, str]:
        return {name: split for split in SPLITS for name in self.of(split)}


@settings(frozen=True, kw_only=True, config=STRICT)
class DatasetInfo:
    """The contents of dataset.json.

    The file is part of the dataset's identity. So a field that is added later, here or in a kind of item,
    takes `Annotated[..., Field(exclude_if=...)]`, which leaves it out of the file where it has its default.
    """

    name: str
    source: str
    licence: str
    item: AnyItemKind
    rotations: Rotations = (0,)
    splits: Splits
    shards: tuple[Shard, ...]
    quarantined: tuple[Quarantined, ...] = ()
    edits: Annotated[tuple[Edit, ...], Field(exclude_if=lambda edits: not edits)] = ()
    manifest: Annotated[str, Field(exclude_if=lambda file: file == MANIFEST_FILE)] = MANIFEST_FILE
    domain_level: Annotated[int | None, Field(ge=0, exclude_if=lambda level: level is None)] = None
    """Which part of an id, from 0, names the domain of the item, such as the style or the camera; None without."""
    members: Annotated[tuple[Member, ...], Field(exclude_if=lambda members: not members)] = ()
    format_version: Literal[1] = 1

    @property
    def n_items(self) -> int:
        """Stored items, in use or not."""
        return sum(shard.items for shard in self.shards)

    @property
    def edit_files(self) -> tuple[str, ...]:
        """The lists of items that lie beside dataset.json."""
        lists = [edit.items for edit in self.edits if isinstance(edit, DropItems | Relabel)]
        return tuple(items.file for items in lists if items.file)


class PackedDataset:
    """Read access to one packed dataset. Rotations multiply items and classes without storing them.

    Virtual item index = rotation_index * n + index among the items in use. Classes are numbered in order of
    their first item, each with its rotations side by side, so an append never renumbers a class.
    """

    def __init__(self, folder: Path, info: DatasetInfo, info_bytes: bytes) -> None:
        self.folder = folder
        self.info = info
        self._info_bytes = info_bytes

    @classmethod
    def open(cls, folder: Path | str) -> "PackedDataset":
        """Raise DataError unless `folder` holds dataset.json and every file it lists at its full size."""
        folder = Path(folder)
        if not (folder / INFO_FILE).is_file():
            raise DataError(_missing(folder))
        info_bytes = (folder / INFO_FILE).read_bytes()
        info = _parsed(folder / INFO_FILE, info_bytes)
        check_rotations(info.item, info.rotations)
        for shard in info.shards:
            _check_shard_size(folder / shard.file, shard, info.item)
        for file in info.edit_files:
            if not (folder / file).is_file():
                raise DataError(f"{folder / file} is not there; dataset.json needs it; {_RESTORE}")
        return cls(folder, info, info_bytes)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def item(self) -> AnyItemKind:
        return self.info.item

    @property
    def n_stored(self) -> int:
        return self.info.n_items if self.rows is None else len(self.rows)

    @property
    def size_bytes(self) -> int:
        """Of all items in use, without rotations."""
        return self.n_stored * item_size_bytes(self.item)

    @cached_property
    def splits(self) -> Splits:
        """The classes in use, by split."""
        if self.curation is None:
            return self.info.splits
        listed = list(zip(self.curation.classes, self.curation.splits, strict=True))
        named = {split: tuple(name for name, of in listed if split in of) for split in SPLITS}
        return Splits(meta_train=named["meta_train"], meta_val=named["meta_val"], meta_test=named["meta_test"])

    @cached_property
    def manifest(self) -> pa.Table:
        """One row per item in use, in shard order; the columns are those of `manifest_schema`."""
        return self._curated(self.stored_manifest)

    @cached_property
    def stored_manifest(self) -> pa.Table:
        """One row per stored item, in use or not, as ingest wrote it."""
        return read_manifest(self.folder, self.info)

    @cached_property
    def rows(self) -> Int | None:
        """(n,) place of every item in use among the stored ones; None where all of them are."""
        if self.curation is None or self.curation.active.all():
            return None
        return np.flatnonzero(self.curation.active)

    @cached_property
    def stored_curation(self) -> Curation:
        """The stored items before the first edit."""
        import pyarrow.compute as pc

        classes, groups = (pc.fill_null(column, "") for column in self._stored_classes_and_groups.columns)
        encoded = classes.combine_chunks().dictionary_encode()
        class_of = encoded.indices.to_numpy().astype(np.int64)
        names = encoded.dictionary.to_pylist()
        first_rows = np.unique(class_of, return_index=True)[1]
        listed: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
        for split in SPLITS:
            for name in self.info.splits.of(split):
                listed[name] = (*listed.get(name, ()), split)
        without_items = [""] * (len(listed) - len(names))
        return Curation(
            classes=tuple(listed),
            groups=(*groups.take(pa.array(first_rows)).to_pylist(), *without_items),
            splits=tuple(listed.values()),
            class_of=class_of,
            active=np.ones(len(class_of), dtype=np.bool_),
        )

    @cached_property
    def curation(self) -> Curation | None:
        """What the edits leave of the stored items; None where there is no edit."""
        return applied(self.stored_curation, self.info.edits, self.rows_of) if self.info.edits else None

    def rows_of(self, items: ItemList) -> tuple[Int, list[str]]:
        """The stored rows (m,) of the items listed, and the new class of each where the list has them."""
        import pyarrow.compute as pc

        listed = item_table(self.folder, items)
        place = pc.index_in(self.stored_ids, value_set=listed["id"].combine_chunks())
        rows = np.flatnonzero(place.is_valid().to_numpy())
        names = listed["class"].take(place.drop_null()).to_pylist() if "class" in listed.column_names else []
        return rows, names

    @cached_property
    def stored_ids(self) -> pa.ChunkedArray:
        return read_manifest(self.folder, self.info, ["id"])["id"]

    @cached_property
    def _stored_classes_and_groups(self) -> pa.Table:
        """The manifest's columns class and group: all that an episode needs, and a small part of it."""
        return read_manifest(self.folder, self.info, ["class", "group"])

    @cached_property
    def _classes_and_groups(self) -> pa.Table:
        return self._curated(self._stored_classes_and_groups)

    def _curated(self, stored: pa.Table) -> pa.Table:
        """The rows in use of a table with a row per stored item, with the class and group that they have now."""
        after = self.curation
        if after is None:
            return stored
        import pyarrow.compute as pc

        changed = after.class_of != self.stored_curation.class_of
        if changed.any():
            for name, of_class in (("class", after.classes), ("group", after.groups)):
                now = pa.array(of_class, pa.string()).take(pa.array(after.class_of))
                column = pc.if_else(pa.array(changed), now, stored[name])
                stored = stored.set_column(stored.column_names.index(name), stored.schema.field(name), column)
        return stored if self.rows is None else stored.take(pa.array(self.rows))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """(C,) names; with rotations each name ends in its angle, as in "Angelic/character01/rot090"."""
        if len(self.info.rotations) == 1:
            return tuple(self._base_classes)
        return tuple(f"{name}/rot{angle:03d}" for name in self._base_classes for angle in self.info.rotations)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._group_of_class.values()))

    @cached_property
    def class_groups(self) -> Int:
        """(C,) number of each class's group in `group_names`."""
        numbers = {name: number for number, name in enumerate(self.group_names)}
        base = np.array([numbers[group] for group in self._group_of_class.values()], dtype=np.int64)
        return np.repeat(base, len(self.info.rotations))

    @cached_property
    def labels(self) -> Int:
        """(R * n,) class number of every virtual item."""
        base = np.array(
            [self._base_classes[name] for name in self._classes_and_groups["class"].to_pylist()], dtype=np.int64
        )
        n_rotations = len(self.info.rotations)
        return np.concatenate([base * n_rotations + rotation for rotation in range(n_rotations)])

    def class_ids(self, split: str) -> Int:
        """Numbers of the classes of `split`; a rotated class is in its base class's split."""
        base = np.array([self._base_classes[name] for name in self.splits.of(split)], dtype=np.int64)
        n_rotations = len(self.info.rotations)
        return np.sort((base[:, None] * n_rotations + np.arange(n_rotations)).ravel())

    def class_table(self, split: str) -> ClassTable:
        return ClassTable.from_labels(
            self.labels, self.class_ids(split), self.class_groups, self.domains, self.domain_names
        )

    @cached_property
    def domain_names(self) -> tuple[str, ...]:
        """In alphabetical order; () where the dataset has none."""
        return tuple(sorted(set(self._domain_of_each)))

    @cached_property
    def domains(self) -> Int | None:
        """(R * n,) number of the domain of every virtual item in `domain_names`; None where there are none."""
        if self.info.domain_level is None:
            return None
        number_of = {name: number for number, name in enumerate(self.domain_names)}
        numbers = np.array([number_of[name] for name in self._domain_of_each], dtype=np.int64)
        return np.tile(numbers, len(self.info.rotations))

    @cached_property
    def _domain_of_each(self) -> list[str]:
        level = self.info.domain_level
        if level is None:
            return []
        ids = self.stored_ids if self.rows is None else self.stored_ids.take(pa.array(self.rows))
        parts = (name.split("/") for name in ids.to_pylist())
        return [
            part[level].rpartition(".")[0] or part[level] if level == len(part) - 1 else part[level] for part in parts
        ]

    def gather(self, indices: Int) -> NDArray[Any]:
        """Items (*indices.shape, *item) by their virtual indices, rotated counter-clockwise as asked."""
        indices = np.asarray(indices, dtype=np.int64)
        flat = indices.ravel()
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self.info.rotations) * self.n_stored:
            raise IndexError(f"item indices must be in 0..{len(self.info.rotations) * self.n_stored - 1}")
        rotation, stored = np.divmod(flat, self.n_stored)
        items = self._stored(stored)
        for number, angle in enumerate(self.info.rotations):
            if angle and isinstance(self.item, Turnable):
                rows = np.flatnonzero(rotation == number)
                items[rows] = self.item.turned(items[rows], angle // 90)
        return items.reshape(*indices.shape, *self.item.shape)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the bytes of dataset.json (which holds the hash of every shard) and the manifest's rows.

        It covers what is stored and not what this version of the code reads into it, so that a new field or
        column never changes the identity of a dataset that was made without it.
        """
        digest = hashlib.sha256(self._info_bytes)
        for column in self.stored_manifest.column_names:
            values = self.stored_manifest[column]
            if values.null_count < len(values):
                _digest_as_json(digest, column, values)
        return digest.hexdigest()

    @property
    def stored_hash(self) -> str:
        """The content hash that it would have without its edits: what it is of what ingest stored."""
        info = replace(self.info, edits=())
        return PackedDataset(self.folder, info, info_json(info)).content_hash

    @cached_property
    def _group_of_class(self) -> dict[str, str]:
        """In the order of the classes' first items, by which they are numbered."""
        groups: dict[str, str] = {}
        classes, group_of_each = self._classes_and_groups.columns
        for name, group in zip(classes.to_pylist(), group_of_each.to_pylist(), strict=True):
            groups.setdefault(name, group)
        return groups

    @cached_property
    def _base_classes(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._group_of_class)}

    def _map_shards(self) -> list[NDArray[Any]]:
        return [np.load(self.folder / shard.file, mmap_mode="r") for shard in self.info.shards]

    @cached_property
    def _mapped(self) -> list[NDArray[Any]]:
        return self._map_shards()

    @cached_property
    def _resident(self) -> "Tensor | None":
        """Every stored item, where they fit: torch gathers them on several cores."""
        import torch

        size_bytes = self.info.n_items * item_size_bytes(self.item)
        return None if size_bytes > RESIDENT_LIMIT_BYTES else torch.from_numpy(np.concatenate(self._map_shards()))

    def _stored(self, stored: Int) -> NDArray[Any]:
        if self.rows is not None:
            stored = self.rows[stored]
        if self._resident is not None:
            import torch

            found: NDArray[Any] = self._resident.index_select(0, torch.from_numpy(stored)).numpy()
            return found
        shards = self._mapped
        ends = np.cumsum([len(shard) for shard in shards])
        shard_of_item = np.searchsorted(ends, stored, side="right")
        items = np.empty((len(stored), *self.item.shape), dtype=self.item.dtype)
        for number in np.unique(shard_of_item):
            rows = np.flatnonzero(shard_of_item == number)
            start = ends[number] - len(shards[number])
            items[rows] = shards[number][stored[rows] - start]
        return items


def _digest_as_json(digest: "hashlib._Hash", column: str, values: pa.ChunkedArray) -> None:
    """Take in the bytes of json.dumps([column, all values]), some values at a time."""
    digest.update(json.dumps([column, []]).encode()[:-2])
    for start in range(0, len(values), _HASHED_AT_ONCE):
        part = json.dumps(values.slice(start, _HASHED_AT_ONCE).to_pylist()).encode()[1:-1]
        digest.update(b", " + part if start else part)
    digest.update(b"]]")


def npy_header(n_items: int, item: ItemKind) -> bytes:
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(item.dtype),
        "fortran_order": False,
        "shape": (n_items, *item.shape),
    }
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def manifest_schema(item: ItemKind) -> pa.Schema:
    """The manifest's columns: those of every dataset, and among them what the kind of item keeps of an original."""
    text, number = pa.string(), pa.int32()
    before = [(name, text) for name in ("id", "class", "group", "sha256", "source")]
    original = [(name, number if kind is int else text) for name, kind in item.original.items()]
    return pa.schema([*before, *original, ("version", number)])


def check_rotations(item: ItemKind, rotations: Rotations) -> None:
    """Raise DataError for quarter turns of items that cannot be turned."""
    if any(rotations) and not isinstance(item, Turnable):
        raise DataError(f"found rotations {', '.join(map(str, rotations))}; {item} cannot be turned, needed 0 alone")


def read_manifest(folder: Path, info: DatasetInfo, columns: Sequence[str] | None = None) -> pa.Table:
    """Raises DataError. `columns` names those to read, where not all are needed."""
    schema = manifest_schema(info.item)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    try:
        with pq.ParquetFile(folder / info.manifest) as file:  # read_table would import pandas: 60 MB
            table = _in_schema(file.read(columns=schema.names), schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder / info.manifest} cannot be read ({_first_line(error)}); {_RESTORE}") from error
    if len(table) < info.n_items:
        raise DataError(f"{folder / info.manifest} has {len(table)} rows; dataset.json says {info.n_items}; {_RESTORE}")
    return table.slice(0, info.n_items)


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, in its types; one that is not there is all null."""
    there = set(table.column_names)
    columns = [table[field.name] if field.name in there else pa.nulls(len(table), field.type) for field in schema]
    found = pa.table(columns, names=schema.names)
    return found if found.schema == schema else found.cast(schema)  # a cast imports Arrow's compute: 7 MB


def item_table(folder: Path, items: ItemList) -> pa.Table:
    """Columns id and, where items are relabelled, class. Raises DataError for a file that is not as it was written."""
    if not items.file:
        columns = {"id": items.ids} | ({"class": items.classes} if items.classes else {})
        return pa.table({name: pa.chunked_array([pa.array(values, pa.string())]) for name, values in columns.items()})
    content = (folder / items.file).read_bytes()
    if hashlib.sha256(content).hexdigest() != items.sha256:
        raise DataError(f"{folder / items.file} was altered: its sha256 is not that of dataset.json; {_RESTORE}")
    with pq.ParquetFile(io.BytesIO(content)) as file:
        return file.read()


def info_json(info: DatasetInfo) -> bytes:
    value = TypeAdapter(DatasetInfo).dump_python(info, mode="json")
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def read_info(folder: Path) -> DatasetInfo:
    return _parsed(folder / INFO_FILE, (folder / INFO_FILE).read_bytes())


def _parsed(path: Path, content: bytes) -> DatasetInfo:
    try:
        return TypeAdapter(DatasetInfo).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise DataError(
            f"{path} is not format version {FORMAT_VERSION} ({where}: {first['msg']}); {_RESTORE}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_shard_size(path: Path, shard: Shard, item: ItemKind) -> None:
    needed = len(npy_header(shard.items, item)) + shard.items * item_size_bytes(item)
    found = path.stat().st_size if path.is_file() else 0
    if found != needed:
        raise DataError(f"{path} has {found} bytes; dataset.json needs {needed}; {_RESTORE}")


def _missing(folder: Path) -> str:
    parent = folder.parent
    found = sorted(path.parent.name for path in parent.glob(f"*/{INFO_FILE}")) if parent.is_dir() else []
    return (
        f"no dataset at {folder}; found: {', '.join(found) or 'none'}; next: kshot ingest PATH --name {folder.name}, "
        "or kshot ingest glyphs for the built-in one"
    )
