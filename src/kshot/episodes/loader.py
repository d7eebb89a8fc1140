"""Episodes by number -> tensors on the device that learns from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.class_table import Int
from kshot.data.gather import Gather, ResidentItems
from kshot.episodes.augmentation import EpisodeAugmentation, augmented_episodes
from kshot.episodes.episode import EpisodeBatch
from kshot.episodes.pools import MixedShapes, ReadAhead, SampledPool, TaskPool
from kshot.episodes.sampling import EpisodeIndices


@dataclass(frozen=True, kw_only=True)
class EpisodeLoader:
    """A task pool with the items that its episodes point at."""

    pool: TaskPool
    gather: Gather
    augmentation: EpisodeAugmentation = field(default_factory=EpisodeAugmentation)

    @classmethod
    def of_training(
        cls,
        pools: Sequence[SampledPool],
        gather: Gather,
        augmentation: EpisodeAugmentation | None = None,
        *,
        per_step: int = 1,
    ) -> "EpisodeLoader":
        """Episodes drawn a block ahead, where the items lie that they point at; of several pools one for each step."""
        device = gather.device if isinstance(gather, ResidentItems) else None
        ahead = [ReadAhead(pool if device is None else pool.on(device)) for pool in pools]
        pool = ahead[0] if len(ahead) == 1 else MixedShapes(ahead, per_step, pools[0].key)
        return cls(pool=pool, gather=gather, augmentation=augmentation or EpisodeAugmentation())

    def load(self, numbers: range) -> EpisodeBatch:
        """The episodes numbered `numbers`, in class order within each episode, augmented."""
        return augmented_episodes(self.load_plain(numbers), self.augmentation)

    def load_plain(self, numbers: range) -> EpisodeBatch:
        """The same without augmentation."""
        return load_episodes(self.pool.episodes(numbers), self.gather)

    def load_largest(self, numbers: range) -> EpisodeBatch:
        """The same, of the largest shape that the pool has."""
        pool = self.pool.largest if isinstance(self.pool, MixedShapes) else self.pool
        return load_episodes(pool.episodes(numbers), self.gather)


def load_episodes(indices: EpisodeIndices[Any], gather: Gather) -> EpisodeBatch:
    support, query = (
        part.reshape(len(part), part.shape[1] * part.shape[2]) for part in (indices.support, indices.query)
    )
    both = [support, query]
    items = gather(torch.cat(both, dim=1) if isinstance(support, Tensor) else np.concatenate(both, axis=1))
    n_support = support.shape[1]
    support_x, query_x = items[:, :n_support], items[:, n_support:]
    return EpisodeBatch(
        support_x=support_x,
        support_y=_labels(indices.support, support_x.device),
        query_x=query_x,
        query_y=_labels(indices.query, query_x.device),
        n_way=indices.class_ids.shape[1],
        keys=torch.as_tensor(indices.keys, device=support_x.device),
    )


def _labels(items: Int | Tensor, device: torch.device) -> Tensor:
    """(E, N * items per class) int64: position on the N axis is the label."""
    n_episodes, n_way, per_class = items.shape
    return torch.arange(n_way, device=device).repeat_interleave(per_class).expand(n_episodes, -1)
