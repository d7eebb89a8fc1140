"""Item indices -> items on the device that learns from them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.class_table import Int
from kshot.data.items.contract import Turnable
from kshot.data.packed import PackedDataset

Gather = Callable[[Any], Tensor]
"""Item indices (...) of the host -> items (..., *item), floating point, on the learner's device.

`ResidentItems` takes indices of that device too.
"""


_GPU_SHARE = 0.25  # of the free memory that the store may take


def item_gather(dataset: PackedDataset, device: torch.device) -> Gather:
    """Item indices -> items of the dataset on `device`; a GPU that has room holds the whole store."""
    if device.type == "cuda" and dataset.size_bytes <= torch.cuda.mem_get_info(device)[0] * _GPU_SHARE:
        return ResidentItems(dataset, device)
    return lambda indices: dataset.item.tensor(torch.from_numpy(dataset.gather(indices)).to(device))


class ResidentItems:
    """The same with every stored item on `device`: gathered and rotated there.

    For indices that are there already it does not wait for the device.
    """

    def __init__(self, dataset: PackedDataset, device: torch.device) -> None:
        self.device = device
        self._items = torch.from_numpy(dataset.gather(np.arange(dataset.n_stored))).to(device)
        self._kind = dataset.item
        self._turns = [angle // 90 for angle in dataset.info.rotations]

    def __call__(self, indices: Int | Tensor) -> Tensor:
        virtual = torch.as_tensor(indices, device=self.device)
        stored = self._items[virtual % len(self._items)]
        rotation = (virtual // len(self._items)).reshape(*virtual.shape, *(1 for _ in self._kind.shape))
        turned = stored
        for number, turn in enumerate(self._turns):
            if turn and isinstance(self._kind, Turnable):
                turned = torch.where(rotation == number, self._kind.turned(stored, turn), turned)
        return self._kind.tensor(turned)
