"""Reads many files as items, a batch at a time, as the processes of an ingest do. Nothing here needs torch.

Shapes: F files, of which R are readable, *item one item.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot.data.items.contract import ItemKind, Read
from kshot.data.items.depth import Spread, spread_of, together
from kshot.data.items.files import file_bytes
from kshot.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FilesRead:
    """`items` (R, *item); `outcomes` (F,): what is kept of an original and its notes, or the reason of a refusal."""

    items: NDArray[Any]
    outcomes: tuple[tuple[Mapping[str, int | str], tuple[str, ...]] | str, ...]

    def __iter__(self) -> Iterator[Read | str]:
        items = iter(self.items)
        for outcome in self.outcomes:
            if isinstance(outcome, str):
                yield outcome
            else:
                yield Read(item=next(items), original=outcome[0], notes=outcome[1])


def read_files(item: ItemKind, paths: Sequence[str]) -> FilesRead:
    outcomes: list[tuple[Mapping[str, int | str], tuple[str, ...]] | str] = []
    items = np.empty((len(paths), *item.shape), dtype=item.dtype)
    n_read = 0
    for path in paths:
        try:
            read = item.read(file_bytes(path))
        except DataError as refusal:
            outcomes.append(str(refusal))
        else:
            items[n_read] = read.item
            n_read += 1
            outcomes.append((read.original, read.notes))
    return FilesRead(items=items[:n_read], outcomes=tuple(outcomes))


def spread_of_files(counted: bool, paths: Sequence[str]) -> Spread | None:
    """What the deep pictures among the files span together; None when there are none."""
    found = (spread_of(Path(path), counted=counted) for path in paths)
    return together(spread for spread in found if spread is not None)
