"""Item indices -> items on the device that learns from them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.class_table import Int
from kshot.data.packed import PackedDataset

Gather = Callable[[Any], Tensor]
"""Item indices (...) of the host -> items (..., *item), floating point, on the learner's device.

`ResidentItems` takes indices of that device too.
"""


_GPU_SHARE = 0.25  # of the free memory that the store may take


def images_from_items(items: Tensor) -> Tensor:
    """uint8 items (..., H, W, C) -> float32 images (..., C, H, W) in 0..1.

    The memory stays in the order H, W, C, which is channels-last to a convolution.
    """
    return items.float().mul_(1 / 255).movedim(-1, -3)


def image_gather(dataset: PackedDataset, device: torch.device) -> Gather:
    """Item indices -> images of the dataset on `device`; a GPU that has room holds the whole store."""
    if device.type == "cuda" and dataset.size_bytes <= torch.cuda.mem_get_info(device)[0] * _GPU_SHARE:
        return ResidentItems(dataset, device)
    return lambda indices: images_from_items(torch.from_numpy(dataset.gather(indices)).to(device))


class ResidentItems:
    """The same with every stored item on `device`: gathered and rotated there.

    For indices that are there already it does not wait for the device.
    """

    def __init__(self, dataset: PackedDataset, device: torch.device) -> None:
        self.device = device
        self._items = torch.from_numpy(dataset.gather(np.arange(dataset.n_stored))).to(device)
        self._turns = [angle // 90 for angle in dataset.info.rotations]

    def __call__(self, indices: Int | Tensor) -> Tensor:
        virtual = torch.as_tensor(indices, device=self.device)
        stored = self._items[virtual % len(self._items)]
        rotation = (virtual // len(self._items))[..., None, None, None]
        turned = stored
        for number, turn in enumerate(self._turns):
            if turn:
                turned = torch.where(rotation == number, torch.rot90(stored, turn, dims=(-3, -2)), turned)
        return images_from_items(turned)
