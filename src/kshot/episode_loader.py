"""Episodes by number -> tensors on the device that learns from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kshot.datasets.packed import PackedDataset
from kshot.episode import EpisodeBatch
from kshot.sampling import EpisodeIndices, Int
from kshot.task_pool import TaskPool

Gather = Callable[[Int], Tensor]
"""Item indices (...) -> items (..., *item), floating point, on the learner's device."""

_GPU_SHARE = 0.25  # of the free memory that the store may take


def images_from_items(items: Tensor) -> Tensor:
    """uint8 items (..., H, W, C) -> float32 images (..., C, H, W) in 0..1.

    The memory stays in the order H, W, C, which is channels-last to a convolution.
    """
    return items.float().mul_(1 / 255).movedim(-1, -3)


def image_gather(dataset: PackedDataset, device: torch.device) -> Gather:
    """Item indices -> images of the dataset on `device`; a GPU that has room holds the whole store."""
    if device.type == "cuda" and dataset.size_bytes <= torch.cuda.mem_get_info(device)[0] * _GPU_SHARE:
        return resident_gather(dataset, device)
    return lambda indices: images_from_items(torch.from_numpy(dataset.gather(indices)).to(device))


def resident_gather(dataset: PackedDataset, device: torch.device) -> Gather:
    """The same with every stored item on `device`: gathered and rotated there, without waiting for it."""
    items = torch.from_numpy(dataset.gather(np.arange(dataset.n_stored))).to(device)
    turns = [angle // 90 for angle in dataset.info.rotations]

    def gather(indices: Int) -> Tensor:
        virtual = torch.from_numpy(indices).to(device, non_blocking=True)
        stored = items[virtual % len(items)]
        rotation = (virtual // len(items))[..., None, None, None]
        turned = stored
        for number, turn in enumerate(turns):
            if turn:
                turned = torch.where(rotation == number, torch.rot90(stored, turn, dims=(-3, -2)), turned)
        return images_from_items(turned)

    return gather


@dataclass(frozen=True, kw_only=True)
class EpisodeLoader:
    """A task pool with the items that its episodes point at."""

    pool: TaskPool
    gather: Gather

    def load(self, numbers: Int) -> EpisodeBatch:
        """The episodes numbered `numbers` (E,), in class order within each episode."""
        return load_episodes(self.pool.episodes(numbers), self.gather)

    def load_in_parts(self, numbers: Int, at_once: int) -> Iterator[EpisodeBatch]:
        """The same as batches of at most `at_once` episodes, drawn together and gathered one batch after the other."""
        indices = self.pool.episodes(numbers)
        for start in range(0, len(indices), at_once):
            yield load_episodes(indices[start : start + at_once], self.gather)


def load_episodes(indices: EpisodeIndices, gather: Gather) -> EpisodeBatch:
    support, query = (
        part.reshape(len(part), part.shape[1] * part.shape[2]) for part in (indices.support, indices.query)
    )
    items, n_support = gather(np.concatenate([support, query], axis=1)), support.shape[1]
    support_x, query_x = items[:, :n_support], items[:, n_support:]
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
