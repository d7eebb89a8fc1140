"""What is true of a packed dataset: a table with a row per item, and small tables about the set.

Nothing here judges; the validate stage holds the facts against its limits. Every fact is a pure function
of the dataset, the configured episode shapes, the settings and the seed. What is measured of an item, and
whether items can look alike, its kind says (`kshot.data.items`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kshot.data.class_table import Int
from kshot.data.items.contract import Comparable, ItemKind, item_size_bytes
from kshot.data.packed import SPLITS, PackedDataset, Shard
from kshot.episodes.sampling import EpisodeKind, WithinGroup
from kshot.seeding import random_bits, stream_key
from kshot.validation.near_duplicates import near_pairs
from kshot.validation.settings import FactSettings

_CHUNK_BYTES = 2**22  # of items measured together
_NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """P pairs of items that look alike across classes, most alike first.

    first, second (P,) item rows; correlation (P,) of their small grey versions; splits (P,) that the pair
    touches, 1 or 2. `complete` is False when there were too many to count.
    """

    n_compared: int
    complete: bool
    first: Int
    second: Int
    correlation: NDArray[np.float64]
    splits: Int

    def __len__(self) -> int:
        return len(self.first)

    @property
    def across_splits(self) -> int:
        return int((self.splits > 1).sum())


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Mean over items of a measure before the last version and in it, and how far it moved at the least.

    `at_least` is the 95% lower bound of the distance: a few new items do not look like a shift by chance.
    """

    before: float
    after: float
    at_least: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The items of the last version against all earlier ones.

    `class_shift` is the total variation distance between the class shares before and after, over the
    classes that were there before. `mean` and `std` are None where the kind of item does not measure them.
    """

    version: int
    items_before: int
    items_after: int
    mean: Shift | None
    std: Shift | None
    class_shift: float
    new_classes: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that the validate stage judges.

    items: a row per item in use, in stored order: the manifest's columns and split ("" when no split lists
        the class), readable (its shard is as declared; the rest is NaN, or harmless, when it is not),
        the facts of its kind, content_sha256, sha256_matches, blank (a `std` below the limit),
        classes_sharing and splits_sharing (number of classes and splits that hold this very content),
        copies (items of the same class with this very content, itself included).
    columns: a row per manifest column: column, missing (null or empty values).
    shards: a row per shard: file, found, needed (dtype and shape in words).
    classes: a row per class of the manifest or of a split: class, group, items, splits, groups, twins
        (classes whose names differ only in case or in Unicode composition, itself included).
    class_shapes: a row per class and episode shape of its split: split, class, shape, items_found, items_needed.
    split_shapes: a row per split and episode shape: split, shape, where, classes_found, classes_needed.
    near_duplicates: None where items of this kind cannot be compared.
    """

    items: pd.DataFrame
    columns: pd.DataFrame
    shards: pd.DataFrame
    classes: pd.DataFrame
    class_shapes: pd.DataFrame
    split_shapes: pd.DataFrame
    near_duplicates: NearDuplicates | None
    drift: Drift | None


def collect_facts(
    dataset: PackedDataset, kinds: Mapping[str, tuple[EpisodeKind, ...]], settings: FactSettings, seed: int
) -> Facts:
    """Facts of `dataset` for the kinds of episode that are drawn from each split."""
    shards = _shard_table(dataset)
    measured = _measure_items(dataset, shards)
    items = _item_table(dataset, measured, settings)
    classes = _class_table(dataset, items)
    return Facts(
        items=items,
        columns=_column_table(dataset.manifest),
        shards=shards,
        classes=classes,
        class_shapes=_class_shapes(dataset, classes, kinds),
        split_shapes=_split_shapes(dataset, classes, kinds),
        near_duplicates=_near_duplicates(dataset, items, measured, settings, seed),
        drift=_drift(items),
    )


def read_items(dataset: PackedDataset, rows: Int) -> NDArray[Any]:
    """Items in use (len(rows), *item); a shard that holds none of them is not touched."""
    items = np.empty((len(rows), *dataset.item.shape), dtype=dataset.item.dtype)
    stored = rows if dataset.rows is None else dataset.rows[rows]
    start = 0
    for shard in dataset.info.shards:
        inside = np.flatnonzero((stored >= start) & (stored < start + shard.items))
        if len(inside):
            items[inside] = np.load(dataset.folder / shard.file, mmap_mode="r")[stored[inside] - start]
        start += shard.items
    return items


# Items


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Per item (n,); items of a shard that is not as declared have NaN, "" and 0.

    `facts` are those of the kind of item, by name; `looks` are 0 where items of this kind cannot be compared.
    """

    readable: NDArray[np.bool_]
    facts: dict[str, NDArray[np.float64]]
    sha256: pa.Array | pa.ChunkedArray
    looks: NDArray[np.uint64]


def _shard_table(dataset: PackedDataset) -> pd.DataFrame:
    needed = [_layout(dataset.item.dtype, (shard.items, *dataset.item.shape)) for shard in dataset.info.shards]
    found = [_found_layout(dataset.folder / shard.file) for shard in dataset.info.shards]
    files = [shard.file for shard in dataset.info.shards]
    return pd.DataFrame({"file": files, "found": found, "needed": needed}, dtype=object)


def _found_layout(path: Path) -> str:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        return f"unreadable ({str(error).splitlines()[0]})"
    return _layout(array.dtype, array.shape)


def _layout(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> str:
    return f"{dtype} {' x '.join(map(str, shape))}"


def _measure_items(dataset: PackedDataset, shards: pd.DataFrame) -> _Measured:
    as_declared = (shards["found"] == shards["needed"]).tolist()
    used = np.ones(dataset.info.n_items, dtype=np.bool_) if dataset.curation is None else dataset.curation.active
    used_of_shard = np.split(used, np.cumsum([shard.items for shard in dataset.info.shards])[:-1])
    parts = [
        part
        for shard, used_here, readable in zip(dataset.info.shards, used_of_shard, as_declared, strict=True)
        for part in (
            _measure_shard(dataset, shard, used_here) if readable else [_unreadable(dataset.item, int(used_here.sum()))]
        )
    ]
    return _Measured(
        readable=np.concatenate([part.readable for part in parts]),
        facts={name: np.concatenate([part.facts[name] for part in parts]) for name in parts[0].facts},
        sha256=pa.chunked_array([part.sha256 for part in parts]),
        looks=np.concatenate([part.looks for part in parts]),
    )


def _measure_shard(dataset: PackedDataset, shard: Shard, used: NDArray[np.bool_]) -> Iterator[_Measured]:
    """Of the items in use: `used` has one value per item of the shard."""
    stored = np.load(dataset.folder / shard.file, mmap_mode="r")
    step = _items_at_once(dataset)
    for start in range(0, len(stored), step):
        used_here = used[start : start + step]
        items = np.asarray(stored[start : start + step])
        yield _measure(dataset.item, items if used_here.all() else items[used_here])


def _measure(kind: ItemKind, stored: NDArray[Any]) -> _Measured:
    return _Measured(
        readable=np.ones(len(stored), dtype=np.bool_),
        facts={str(name): column.to_numpy() for name, column in kind.facts(stored).items()},
        sha256=pa.array([hashlib.sha256(item).hexdigest() for item in np.ascontiguousarray(stored)]),
        looks=kind.look(stored) if isinstance(kind, Comparable) else np.zeros(len(stored), dtype=np.uint64),
    )


def _unreadable(kind: ItemKind, n_items: int) -> _Measured:
    return _Measured(
        readable=np.zeros(n_items, dtype=np.bool_),
        facts={str(name): np.full(n_items, np.nan) for name in kind.facts(kind.example(1)).columns},
        sha256=pa.array([""] * n_items, pa.string()),
        looks=np.zeros(n_items, dtype=np.uint64),
    )


def _items_at_once(dataset: PackedDataset) -> int:
    return max(1, _CHUNK_BYTES // item_size_bytes(dataset.item))


def _item_table(dataset: PackedDataset, measured: _Measured, settings: FactSettings) -> pd.DataFrame:
    items: pd.DataFrame = dataset.manifest.to_pandas()
    items[["id", "class", "group"]] = items[["id", "class", "group"]].fillna("")
    items["split"] = items["class"].map(dataset.splits.by_class()).fillna("")
    items = items.assign(**measured.facts)
    items["readable"] = measured.readable
    items["blank"] = items["std"] < settings.blank_std if "std" in items else False
    items["content_sha256"] = measured.sha256.to_pandas()
    items["sha256_matches"] = (items["content_sha256"] == items["sha256"]) | ~items["readable"]
    return _with_sharing(items)


def _with_sharing(items: pd.DataFrame) -> pd.DataFrame:
    """How many classes, splits and items hold the same content. Blank items are alike, and reported as blank only."""
    items[["classes_sharing", "splits_sharing", "copies"]] = 1
    repeated = items[items["readable"] & ~items["blank"] & items.duplicated("content_sha256", keep=False)]
    alike = repeated.groupby("content_sha256", sort=False)
    items.loc[repeated.index, "classes_sharing"] = alike["class"].transform("nunique")
    items.loc[repeated.index, "splits_sharing"] = alike["split"].transform("nunique")
    items.loc[repeated.index, "copies"] = repeated.groupby(["content_sha256", "class"])["id"].transform("size")
    return items


def _column_table(manifest: pa.Table) -> pd.DataFrame:
    """A class may have no group, so an empty group is not missing."""
    missing = {}
    for field, column in zip(manifest.schema, manifest.columns, strict=True):
        may_be_empty = field.name == "group" or field.type != pa.string()
        n_empty = 0 if may_be_empty else pc.sum(pc.equal(column, "")).as_py() or 0
        missing[field.name] = column.null_count + n_empty
    return pd.DataFrame({"column": list(missing), "missing": list(missing.values())})


# Classes and splits


def _class_table(dataset: PackedDataset, items: pd.DataFrame) -> pd.DataFrame:
    listed = [name for split in SPLITS for name in dataset.splits.of(split)]
    table = items.groupby("class", sort=False).agg(items=("id", "size"), groups=("group", "nunique"))
    table = table.reindex(list(dict.fromkeys([*table.index, *listed])), fill_value=0).rename_axis("class").reset_index()
    table["splits"] = table["class"].map(pd.Series(listed, dtype=object).value_counts()).fillna(0).astype(np.int64)
    table["group"] = table["class"].map(items.drop_duplicates("class").set_index("class")["group"]).fillna("")
    folded = table["class"].str.normalize("NFC").str.casefold()
    table["twins"] = folded.groupby(folded).transform("size")
    return table


def _class_shapes(
    dataset: PackedDataset, classes: pd.DataFrame, kinds: Mapping[str, tuple[EpisodeKind, ...]]
) -> pd.DataFrame:
    n_items = dict(zip(classes["class"], classes["items"], strict=True))
    rows = [
        (split, name, str(shape), n_items[name], shape.items_per_class)
        for split in SPLITS
        for shape in dict.fromkeys(kind.shape for kind in kinds.get(split, ()))
        for name in dataset.splits.of(split)
    ]
    return pd.DataFrame(rows, columns=["split", "class", "shape", "items_found", "items_needed"])


def _split_shapes(
    dataset: PackedDataset, classes: pd.DataFrame, kinds: Mapping[str, tuple[EpisodeKind, ...]]
) -> pd.DataFrame:
    """An episode drawn within a group needs its classes in one group."""
    rows = []
    for split in SPLITS:
        held = classes[classes["class"].isin(dataset.splits.of(split)) & (classes["items"] > 0)]
        largest_group = int(held["group"].value_counts().max()) if len(held) else 0
        for kind in kinds.get(split, ()):
            within = isinstance(kind.sampler, WithinGroup)
            n_classes = (largest_group if within else len(held)) * len(dataset.info.rotations) * kind.n_views
            where = "in its largest group" if within else "in the split"
            rows.append((split, str(kind.shape), where, n_classes, kind.shape.n_way))
    return pd.DataFrame(rows, columns=["split", "shape", "where", "classes_found", "classes_needed"])


# The set


def _near_duplicates(
    dataset: PackedDataset, items: pd.DataFrame, measured: _Measured, settings: FactSettings, seed: int
) -> NearDuplicates | None:
    kind = dataset.item
    if not isinstance(kind, Comparable):
        return None
    candidates = np.flatnonzero(items["readable"] & ~items["blank"])
    rows = _drawn(candidates, settings.near_duplicate_items, seed)
    step = _items_at_once(dataset)
    chunks = (rows[start : start + step] for start in range(0, max(len(rows), 1), step))
    pairs = near_pairs(
        measured.looks[rows],
        np.concatenate([kind.sketch(read_items(dataset, chunk)) for chunk in chunks]),
        labels=pd.factorize(items["class"])[0][rows],
        contents=pd.factorize(items["content_sha256"])[0][rows],
        max_bits=settings.near_duplicate_bits,
        min_correlation=settings.near_duplicate_correlation,
    )
    first, second = rows[pairs.first], rows[pairs.second]
    split = items["split"].to_numpy()
    return NearDuplicates(
        n_compared=len(rows),
        complete=pairs.complete,
        first=first,
        second=second,
        correlation=pairs.correlation,
        splits=np.where(split[first] == split[second], 1, 2),
    )


def _drawn(candidates: Int, n_wanted: int, seed: int) -> Int:
    """At most `n_wanted` of the candidates, in their order."""
    if len(candidates) <= n_wanted:
        return candidates
    keys = random_bits(stream_key(seed, "validate", "near_duplicates"), candidates)
    return np.sort(candidates[np.argsort(keys, kind="stable")[:n_wanted]])


def _drift(items: pd.DataFrame) -> Drift | None:
    """None when there is one version."""
    versions = np.sort(items["version"].dropna().unique())
    if len(versions) < 2:
        return None
    last = items["version"] == versions[-1]
    before, after = items[~last], items[last]
    shares_before = before["class"].value_counts(normalize=True)
    known = items[items["class"].isin(shares_before.index)]["class"].value_counts(normalize=True)
    return Drift(
        version=int(versions[-1]),
        items_before=len(before),
        items_after=len(after),
        mean=_shift(before["mean"], after["mean"]) if "mean" in items else None,
        std=_shift(before["std"], after["std"]) if "std" in items else None,
        class_shift=float(known.sub(shares_before).abs().sum() / 2),
        new_classes=len(set(after["class"]) - set(before["class"])),
    )


def _shift(before: pd.Series, after: pd.Series) -> Shift:
    error = np.sqrt(before.var(ddof=0) / len(before) + after.var(ddof=0) / len(after))
    distance = abs(after.mean() - before.mean())
    return Shift(
        before=float(before.mean()), after=float(after.mean()), at_least=float(max(0.0, distance - _NORMAL_95 * error))
    )
