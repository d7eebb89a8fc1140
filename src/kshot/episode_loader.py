"""Episodes by number -> tensors on the device that learns from them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.datasets.packed import PackedDataset
from kshot.episode import EpisodeBatch
from kshot.sampling import EpisodeIndices, Int
from kshot.task_pool import TaskPool

Gather = Callable[[Int], Tensor]
"""Item indices (...) -> items (..., *item), floating point, on the learner's device."""


def images_from_items(items: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 items (..., H, W, C) -> float32 images (..., C, H, W) in 0..1.

    The memory stays in the order H, W, C, which is channels-last to a convolution.
    """
    return torch.from_numpy(items).to(device).float().div_(255).movedim(-1, -3)


def image_gather(dataset: PackedDataset, device: torch.device) -> Gather:
    """Item indices -> images of the dataset on `device`."""
    return lambda indices: images_from_items(dataset.gather(indices), device)


@dataclass(frozen=True, kw_only=True)
class EpisodeLoader:
    """A task pool with the items that its episodes point at."""

    pool: TaskPool
    gather: Gather

    def load(self, numbers: Int) -> EpisodeBatch:
        """The episodes numbered `numbers` (E,), in class order within each episode."""
        return load_episodes(self.pool.episodes(numbers), self.gather)


def load_episodes(indices: EpisodeIndices, gather: Gather) -> EpisodeBatch:
    support_x = gather(indices.support).flatten(1, 2)
    query_x = gather(indices.query).flatten(1, 2)
    return EpisodeBatch(
        support_x=support_x,
        support_y=_labels(indices.support, support_x.device),
        query_x=query_x,
        query_y=_labels(indices.query, query_x.device),
        n_way=indices.class_ids.shape[1],
    )


def _labels(items: Int, device: torch.device) -> Tensor:
    """(E, N * items a class) int64: position on the N axis is the label."""
    n_episodes, n_way, per_class = items.shape
    return torch.arange(n_way, device=device).repeat_interleave(per_class).expand(n_episodes, -1)
