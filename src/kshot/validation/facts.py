"""What is true of a packed dataset: a table with a row per item, and small tables about the set.

Nothing here judges; the validate stage holds the facts against its limits. Every fact is a pure function
of the dataset, the configured episode shapes, the settings and the seed. Brightness is in grey levels, 0
to 255.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kshot.data.class_table import Int
from kshot.data.packed import SPLITS, PackedDataset, Pixels, Shard
from kshot.episodes.sampling import EpisodeKind, WithinGroup
from kshot.seeding import random_bits, stream_key
from kshot.validation.near_duplicates import Hashes, difference_hash, near_pairs, thumbnails
from kshot.validation.settings import FactSettings

_CHUNK_BYTES = 2**22  # pixels measured together
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
    classes that were there before.
    """

    version: int
    items_before: int
    items_after: int
    mean: Shift
    std: Shift
    class_shift: float
    new_classes: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that the validate stage judges.

    items: a row per stored item, in stored order: the manifest's columns and split ("" when no split lists
        the class), readable (its shard is as declared; the rest is NaN, or harmless, when it is not),
        pixel_sha256, sha256_matches, mean, std, min, max, blank, classes_sharing and splits_sharing
        (number of classes and splits that hold these very pixels), copies (items of the same class with
        these very pixels, itself included).
    columns: a row per manifest column: column, missing (null or empty values).
    shards: a row per shard: file, found, needed (dtype and shape in words).
    classes: a row per class of the manifest or of a split: class, group, items, splits, groups, twins
        (classes whose names differ only in case or in Unicode composition, itself included).
    class_shapes: a row per class and episode shape of its split: split, class, shape, items_found, items_needed.
    split_shapes: a row per split and episode shape: split, shape, where, classes_found, classes_needed.
    """

    items: pd.DataFrame
    columns: pd.DataFrame
    shards: pd.DataFrame
    classes: pd.DataFrame
    class_shapes: pd.DataFrame
    split_shapes: pd.DataFrame
    near_duplicates: NearDuplicates
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
        columns=_column_table(dataset.manifest.to_pandas()),
        shards=shards,
        classes=classes,
        class_shapes=_class_shapes(dataset, classes, kinds),
        split_shapes=_split_shapes(dataset, classes, kinds),
        near_duplicates=_near_duplicates(dataset, items, measured, settings, seed),
        drift=_drift(items),
    )


def read_items(dataset: PackedDataset, rows: Int) -> Pixels:
    """Pixels (len(rows), H, W, C) of stored items; a shard that holds none of them is not touched."""
    pixels = np.empty((len(rows), *dataset.item.shape), dtype=np.uint8)
    start = 0
    for shard in dataset.info.shards:
        inside = np.flatnonzero((rows >= start) & (rows < start + shard.items))
        if len(inside):
            pixels[inside] = np.load(dataset.folder / shard.file, mmap_mode="r")[rows[inside] - start]
        start += shard.items
    return pixels


# Items


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Per item (n,); items of a shard that is not as declared have NaN, "" and 0."""

    readable: NDArray[np.bool_]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    sha256: list[str]
    hashes: Hashes


def _shard_table(dataset: PackedDataset) -> pd.DataFrame:
    needed = [_layout(np.dtype(np.uint8), (shard.items, *dataset.item.shape)) for shard in dataset.info.shards]
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
    parts = [
        part
        for shard, readable in zip(dataset.info.shards, as_declared, strict=True)
        for part in (_measure_shard(dataset, shard) if readable else [_unreadable(shard.items)])
    ]
    return _Measured(
        readable=np.concatenate([part.readable for part in parts]),
        mean=np.concatenate([part.mean for part in parts]),
        std=np.concatenate([part.std for part in parts]),
        min=np.concatenate([part.min for part in parts]),
        max=np.concatenate([part.max for part in parts]),
        sha256=[digest for part in parts for digest in part.sha256],
        hashes=np.concatenate([part.hashes for part in parts]),
    )


def _measure_shard(dataset: PackedDataset, shard: Shard) -> Iterator[_Measured]:
    stored = np.load(dataset.folder / shard.file, mmap_mode="r")
    step = max(1, _CHUNK_BYTES // dataset.item.size_bytes)
    for start in range(0, len(stored), step):
        yield _measure(np.asarray(stored[start : start + step]))


def _measure(pixels: Pixels) -> _Measured:
    """Sums are whole numbers, so that the facts are the same on every machine."""
    flat = pixels.reshape(len(pixels), -1)
    total = flat.sum(axis=1, dtype=np.int64)
    squares = np.square(flat, dtype=np.uint32).sum(axis=1, dtype=np.int64)
    n = flat.shape[1]
    return _Measured(
        readable=np.ones(len(pixels), dtype=np.bool_),
        mean=total / n,
        std=np.sqrt((squares * n - total**2) / n**2),
        min=flat.min(axis=1).astype(np.float64),
        max=flat.max(axis=1).astype(np.float64),
        sha256=[hashlib.sha256(item.tobytes()).hexdigest() for item in flat],
        hashes=difference_hash(pixels),
    )


def _unreadable(n_items: int) -> _Measured:
    unknown = np.full(n_items, np.nan)
    return _Measured(
        readable=np.zeros(n_items, dtype=np.bool_),
        mean=unknown,
        std=unknown,
        min=unknown,
        max=unknown,
        sha256=[""] * n_items,
        hashes=np.zeros(n_items, dtype=np.uint64),
    )


def _item_table(dataset: PackedDataset, measured: _Measured, settings: FactSettings) -> pd.DataFrame:
    items: pd.DataFrame = dataset.manifest.to_pandas()
    items[["id", "class", "group"]] = items[["id", "class", "group"]].fillna("")
    items["split"] = items["class"].map(dataset.info.splits.by_class()).fillna("")
    items["mean"], items["std"] = measured.mean, measured.std
    items["min"], items["max"] = measured.min, measured.max
    items["readable"], items["blank"] = measured.readable, measured.std < settings.blank_std
    items["pixel_sha256"] = measured.sha256
    items["sha256_matches"] = (items["pixel_sha256"] == items["sha256"]) | ~items["readable"]
    return _with_sharing(items)


def _with_sharing(items: pd.DataFrame) -> pd.DataFrame:
    """How many classes, splits and items hold the same pixels. Blank items are alike and are reported as blank only."""
    items[["classes_sharing", "splits_sharing", "copies"]] = 1
    repeated = items[items["readable"] & ~items["blank"] & items.duplicated("pixel_sha256", keep=False)]
    alike = repeated.groupby("pixel_sha256", sort=False)
    items.loc[repeated.index, "classes_sharing"] = alike["class"].transform("nunique")
    items.loc[repeated.index, "splits_sharing"] = alike["split"].transform("nunique")
    items.loc[repeated.index, "copies"] = repeated.groupby(["pixel_sha256", "class"])["id"].transform("size")
    return items


def _column_table(manifest: pd.DataFrame) -> pd.DataFrame:
    """A class may have no group, so an empty group is not missing."""
    missing = {
        column: int(manifest[column].isna().sum() + ((manifest[column] == "").sum() if column != "group" else 0))
        for column in manifest.columns
    }
    return pd.DataFrame({"column": list(missing), "missing": list(missing.values())})


# Classes and splits


def _class_table(dataset: PackedDataset, items: pd.DataFrame) -> pd.DataFrame:
    listed = [name for split in SPLITS for name in dataset.info.splits.of(split)]
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
        for name in dataset.info.splits.of(split)
    ]
    return pd.DataFrame(rows, columns=["split", "class", "shape", "items_found", "items_needed"])


def _split_shapes(
    dataset: PackedDataset, classes: pd.DataFrame, kinds: Mapping[str, tuple[EpisodeKind, ...]]
) -> pd.DataFrame:
    """An episode drawn within a group needs its classes in one group."""
    rows = []
    for split in SPLITS:
        held = classes[classes["class"].isin(dataset.info.splits.of(split)) & (classes["items"] > 0)]
        largest_group = int(held["group"].value_counts().max()) if len(held) else 0
        for kind in kinds.get(split, ()):
            within = isinstance(kind.sampler, WithinGroup)
            n_classes = (largest_group if within else len(held)) * len(dataset.info.rotations)
            where = "in its largest group" if within else "in the split"
            rows.append((split, str(kind.shape), where, n_classes, kind.shape.n_way))
    return pd.DataFrame(rows, columns=["split", "shape", "where", "classes_found", "classes_needed"])


# The set


def _near_duplicates(
    dataset: PackedDataset, items: pd.DataFrame, measured: _Measured, settings: FactSettings, seed: int
) -> NearDuplicates:
    candidates = np.flatnonzero(items["readable"] & ~items["blank"])
    rows = _drawn(candidates, settings.near_duplicate_items, seed)
    step = max(1, _CHUNK_BYTES // dataset.item.size_bytes)
    chunks = (rows[start : start + step] for start in range(0, max(len(rows), 1), step))
    pairs = near_pairs(
        measured.hashes[rows],
        np.concatenate([thumbnails(read_items(dataset, chunk)) for chunk in chunks]),
        labels=pd.factorize(items["class"])[0][rows],
        contents=pd.factorize(items["pixel_sha256"])[0][rows],
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
        mean=_shift(before["mean"], after["mean"]),
        std=_shift(before["std"], after["std"]),
        class_shift=float(known.sub(shares_before).abs().sum() / 2),
        new_classes=len(set(after["class"]) - set(before["class"])),
    )


def _shift(before: pd.Series, after: pd.Series) -> Shift:
    error = np.sqrt(before.var(ddof=0) / len(before) + after.var(ddof=0) / len(after))
    distance = abs(after.mean() - before.mean())
    return Shift(
        before=float(before.mean()), after=float(after.mean()), at_least=float(max(0.0, distance - _NORMAL_95 * error))
    )
