"""Views of items: turned or mirrored, so that each view of a class is a class of its own.

Shapes: *item the shape of an item, here C, H, W.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor

from kshot.data.class_table import Int
from kshot.data.gather import Gather

View = Literal["90", "180", "270", "mirrored", "mirrored 90", "mirrored 180", "mirrored 270"]


def _each_once(views: tuple[View, ...]) -> tuple[View, ...]:
    if len(set(views)) < len(views):
        raise ValueError("need each view once")
    return views


Views = Annotated[tuple[View, ...], AfterValidator(_each_once)]

_SEEN: dict[View, Callable[[Tensor], Tensor]] = {
    "90": lambda items: items.rot90(1, (-2, -1)),
    "180": lambda items: items.rot90(2, (-2, -1)),
    "270": lambda items: items.rot90(3, (-2, -1)),
    "mirrored": lambda items: items.flip(-1),
    "mirrored 90": lambda items: items.flip(-1).rot90(1, (-2, -1)),
    "mirrored 180": lambda items: items.flip(-1).rot90(2, (-2, -1)),
    "mirrored 270": lambda items: items.flip(-1).rot90(3, (-2, -1)),
}


def viewed(items: Tensor, view: View) -> Tensor:
    """The items (..., *item) in this view."""
    return _SEEN[view](items)


class ViewedItems:
    """A gather for items beside their views: index v * n_items + i is view v of item i, and view 0 is the item."""

    def __init__(self, gather: Gather, n_items: int, views: Views) -> None:
        self._gather, self._n_items, self._views = gather, n_items, views

    def __call__(self, indices: Int) -> Tensor:
        view, item = np.divmod(np.asarray(indices), self._n_items)
        items = self._gather(item)
        for number in np.unique(view[view > 0]).tolist():
            chosen = torch.from_numpy(view == number).to(items.device)[..., None, None, None]
            items = torch.where(chosen, viewed(items, self._views[number - 1]), items)
        return items
