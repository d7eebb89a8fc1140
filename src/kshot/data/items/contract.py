"""What an item of a dataset is. A kind of item is the only place that knows: everything else asks it.

The settings of a kind are stored in dataset.json. Whoever adds a kind writes one file beside this one and
one line of the union in `kshot.data.items`; the contract tests pick it up.

How a kind stores its items: every item of a dataset has the same shape and type, so that shards are plain
arrays that can be hashed, memory-mapped and held on a GPU. An image is stored as its pixels, a vector as its
numbers. Something of no fixed length, such as a text, is stored as its bytes (UTF-8), cut at the length that
the kind states and padded with zeros: (L,) uint8. It is not stored as token numbers, because a tokenizer
belongs to the encoder, and a dataset must not change when the encoder does.

Shapes: n items, *item the shape of one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch too: the processes that only read files start without it
    import pandas as pd
    from markupsafe import Markup
    from torch import Tensor

ItemSource = Path | bytes | str | NDArray[Any]
"""What an item can be read from: a file, the bytes of one, a text, or an array."""

Stored = TypeVar("Stored", NDArray[Any], "Tensor")


@dataclass(frozen=True, kw_only=True)
class Read:
    """An item (*item) as it is stored, and what the manifest keeps of its original, by column.

    `notes` say what was done to it that people should know of, each as in "3 of 60 pictures NOTE".
    """

    item: NDArray[Any]
    original: Mapping[str, int | str]
    notes: tuple[str, ...] = ()


class ItemKind(Protocol):
    """A frozen value that says what an item is. `str` of it describes the items in a few words, in the plural.

    `original` names the columns of the manifest that this kind adds, and the type of each.
    """

    original: ClassVar[Mapping[str, type[int] | type[str]]]

    @property
    def kind(self) -> str:
        """The tag in dataset.json, and what people call one item."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, source: ItemSource) -> Read:
        """The item that `source` holds, by one rule for ingest and serving. Raises DataError with the reason."""
        ...

    def tensor(self, stored: "Tensor") -> "Tensor":
        """Stored items (..., *item) as what a backbone takes: floating point, on the same device."""
        ...

    def show(self, stored: NDArray[Any]) -> "Markup":
        """One stored item (*item) as HTML that needs no other file, for reports and pages."""
        ...

    def facts(self, stored: NDArray[Any]) -> "pd.DataFrame":
        """What validation measures of stored items (n, *item): one row per item, float64, the same on every machine.

        The columns decide which checks are made; `kshot.validation.suite` says which it knows.
        """
        ...

    def example(self, n: int) -> NDArray[Any]:
        """Meaningless items (n, *item), always the same, for whoever needs something of the right form."""
        ...


@runtime_checkable
class Turnable(Protocol):
    """A kind whose items can be turned by quarters, so that each turn of a class makes a class of its own."""

    def turned(self, stored: Stored, quarters: int) -> Stored:
        """Items (..., *item) turned counter-clockwise."""
        ...


@runtime_checkable
class Comparable(Protocol):
    """A kind whose items can look alike without being equal, so that near duplicates can be searched for."""

    def look(self, stored: NDArray[Any]) -> NDArray[np.uint64]:
        """(n,) 64 bits of each item (n, *item); items that look alike differ in few of them."""
        ...

    def sketch(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """(n, T) a small version of each item (n, *item); those of items that look alike correlate."""
        ...


def item_size_bytes(item: ItemKind) -> int:
    """Of one stored item."""
    return math.prod(item.shape) * item.dtype.itemsize
