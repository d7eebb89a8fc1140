"""What a caller gives to a registered model: three inputs by name, as arrays or as lists, also those of JSON.

Nothing is taken for something else than it is: a truth value is no label, a fraction is no pixel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot.data.items import ImageKind
from kshot.data.items.contract import ItemKind
from kshot.errors import DataError, EpisodeError, ModelError

SUPPORT_ITEMS, SUPPORT_LABELS, QUERY_ITEMS = INPUTS = ("support_items", "support_labels", "query_items")
_OLDER_NAMES = {"support_images": SUPPORT_ITEMS, "query_images": QUERY_ITEMS}
_TYPES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Call:
    """The inputs as they were given, each under its name."""

    support_items: Any
    support_labels: Any
    query_items: Any


def read_call(given: Any) -> Call:
    """The inputs in a mapping. Raises ModelError for a name that is missing or one too many."""
    if not isinstance(given, Mapping):
        raise ModelError(f"found {type(given).__name__}; need the inputs by name: {', '.join(INPUTS)}")
    named = {_OLDER_NAMES.get(str(name), str(name)): value for name, value in given.items()}
    if sorted(named) != sorted(INPUTS) or len(named) < len(given):
        raise ModelError(f"found the inputs {', '.join(map(str, given)) or 'none'}; need {', '.join(INPUTS)}")
    return Call(**named)


def read_items(given: Any, item: ItemKind) -> NDArray[Any]:
    """Items (I, *item) of an array or a list (I, ...), by the same rule as at ingest: images may be of any size."""
    if not isinstance(given, list | tuple | np.ndarray) or (isinstance(given, np.ndarray) and not given.ndim):
        raise ModelError(f"found {type(given).__name__}; need an array or a list of at least one {item.kind}")
    words = f"an array of shape {given.shape}" if isinstance(given, np.ndarray) else f"a list of {len(given)}"
    if not len(given):
        raise ModelError(f"found {words}; need at least one {item.kind}")
    try:
        return np.stack([item.read(_array(one, item)).item for one in given])
    except DataError as error:
        raise ModelError(f"of {words}, {error}") from error


def read_labels(given: Any, n_items: int) -> NDArray[Any]:
    """Labels (n_items,), all of them whole numbers or all of them texts. Raises EpisodeError for others."""
    try:
        shape = np.shape(given)
    except ValueError:
        raise EpisodeError("found labels of several shapes; need one label for each support item") from None
    if shape != (n_items,):
        raise EpisodeError(f"found labels of shape {shape} for {n_items} support items; need one each")
    if isinstance(given, np.ndarray) and given.dtype.kind in "iuU":
        return given
    labels: Sequence[Any] = given.tolist() if isinstance(given, np.ndarray) else list(given)
    kinds = {_kind(label) for label in labels}
    if kinds <= {"text"} or kinds <= {"whole number"}:
        array = np.array(labels)
        if array.dtype.kind in "iuU":
            return array
    shown = ", ".join(sorted(kinds)[:_TYPES_SHOWN])
    raise EpisodeError(f"found labels of type {shown}; need whole numbers of 64 bits alone, or texts alone")


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return "whole number"
    return "None" if label is None else type(label).__name__


def _array(given: Any, item: ItemKind) -> NDArray[Any]:
    """One item as an array. Whole numbers without a width of their own, as in a list, may be bytes.

    Where the dataset has a value range they are values of it, as in a deep picture, whatever they are.
    """
    try:
        array = np.asarray(given)
    except ValueError:
        raise DataError("one has rows of several lengths; need them equal") from None
    deep = isinstance(item, ImageKind) and item.value_range is not None
    if array.dtype != np.int64 or item.dtype != np.uint8 or deep or not array.size:
        return array
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > np.iinfo(np.uint8).max:
        raise DataError(f"the values go from {lowest} to {highest}; need 0 to 255")
    return array.astype(np.uint8)
