"""From the files of a source to items, in order, on every core."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import fspath
from typing import Literal

from kshot.data.items import AnyItemKind, ImageKind
from kshot.data.items.contract import ItemKind, Read, item_size_bytes
from kshot.data.items.depth import ValueRange, may_be_deep, percentiles, range_text, together
from kshot.data.items.reading import read_files, spread_of_files
from kshot.errors import DataError
from kshot.ingest.source import SourceFile
from kshot.runtime.cpu import usable_cores
from kshot.runtime.processes import Processes, in_order

RangeRule = Literal["extremes", "percentile"]

_FILES_AT_ONCE, _BYTES_AT_ONCE = 64, 4 * 2**20  # of items in a batch
_BATCHES_PER_CORE = 8
_FEW_FILES = 512  # are read before processes for them would have started


def read_in_order(item: ItemKind, files: Sequence[SourceFile]) -> Generator[tuple[SourceFile, Read | str], None, None]:
    """Each file with what was read from it, or the reason of its refusal. To leave before its end, close it."""
    at_once = _files_at_once(len(files), item_size_bytes(item))
    with _executor(len(files)) as executor:
        results = in_order(executor, partial(read_files, item), _paths(files, at_once), ahead=2 * usable_cores())
        yield from zip(files, (outcome for result in results for outcome in result), strict=True)


def with_value_range(
    item: AnyItemKind, files: Sequence[SourceFile], rule: RangeRule, before: AnyItemKind | None
) -> AnyItemKind:
    """`item` with the value range of the dataset, or for a new one with that of the deep pictures among `files`.

    Only files whose first bytes may be those of a deep picture are decoded for it. "extremes" goes from the lowest to
    the highest value, "percentile" from where 0.1 % of all pixels are lower to where 0.1 % are higher.
    """
    if not isinstance(item, ImageKind):
        return item
    if isinstance(before, ImageKind):
        if rule == "percentile":
            raise DataError(
                f"found --range percentile for a dataset of {before}; needed a new one, for which a range is found; "
                "next: leave out --range, or ingest under a new --name"
            )
        return item if item.value_range else replace(item, value_range=before.value_range)
    if item.value_range is not None:
        return item
    found = _value_range([file for file in files if may_be_deep(file.path)], rule)
    return item if found is None else replace(item, value_range=found)


def _value_range(deep: Sequence[SourceFile], rule: RangeRule) -> ValueRange | None:
    with _executor(len(deep)) as executor:
        spread_of_some = partial(spread_of_files, rule == "percentile")
        spreads = in_order(
            executor, spread_of_some, _paths(deep, _files_at_once(len(deep), 0)), ahead=2 * usable_cores()
        )
        spread = together(one for one in spreads if one is not None)
    if spread is None:
        return None
    low, high = percentiles(spread) if rule == "percentile" else (spread.lowest, spread.highest)
    if low == high:
        raise DataError(
            f"the {spread.n_pictures} pictures deeper than 8 bits span the values {range_text((low, high))}; "
            "needed two different ones; next: give the range, as in --range 0:65535"
        )
    return low, high


@contextmanager
def _executor(n_files: int) -> Iterator[Executor]:
    cores = usable_cores()
    several = n_files >= _FEW_FILES and cores > 1
    with Processes(cores) if several else ThreadPoolExecutor(max_workers=cores) as executor:
        yield executor


def _files_at_once(n_files: int, item_bytes: int) -> int:
    """So many that their items stay small, and of a few large photos no more than leaves each core its part."""
    small = _BYTES_AT_ONCE // item_bytes if item_bytes else _FILES_AT_ONCE
    return max(1, min(_FILES_AT_ONCE, small, n_files // (_BATCHES_PER_CORE * usable_cores())))


def _paths(files: Sequence[SourceFile], at_once: int) -> Iterator[list[str]]:
    for start in range(0, len(files), at_once):
        yield [fspath(file.path) for file in files[start : start + at_once]]
