"""Episodes whose answer is known: points around class centres, and a backbone that does next to nothing."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kshot.backbones.contract import Backbone
from kshot.data.class_table import ClassTable, Int
from kshot.data.gather import Gather
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import FrozenPool, SampledPool
from kshot.episodes.sampling import Uniform

NOISE = 1.5
SHAPE = EpisodeShape(n_way=3, k_shot=2, n_query=4)


class LinearBackbone(Backbone):
    """Items (B, D) -> features (B, 8), by one matrix; has no statistics to share between items."""

    def __init__(self, n_inputs: int = 16) -> None:
        super().__init__()
        self.n_features = 8
        self.linear = nn.Linear(n_inputs, 8, dtype=torch.get_default_dtype())

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        features: Tensor = self.linear(items)
        return features


class TwoLayers(Backbone):
    """The same by two matrices, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.n_features = 8
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        features: Tensor = self.second(self.first(items))
        return features


def separable_points(n_classes: int = 24, n_items: int = 12) -> tuple[Tensor, Int]:
    """Points (items, 16) and the class of each: six numbers tell the class, ten are noise that drowns them."""
    generator = torch.Generator().manual_seed(3)
    telling = torch.randn(n_classes, 1, 6, generator=generator).expand(-1, n_items, -1)
    telling = telling + 0.05 * torch.randn(n_classes, n_items, 6, generator=generator)
    noise = NOISE * torch.randn(n_classes, n_items, 10, generator=generator)
    points = torch.cat([telling, noise], dim=2)
    return points.flatten(0, 1), np.repeat(np.arange(n_classes), n_items)


def class_table(labels: Int, class_ids: Int) -> ClassTable:
    return ClassTable.from_labels(labels, class_ids, np.zeros(labels.max() + 1, dtype=np.int64))


def point_gather(points: Tensor) -> Gather:
    return lambda indices: points[torch.from_numpy(indices)]


def point_pools(shape: EpisodeShape = SHAPE, n_classes: int = 24) -> tuple[EpisodeLoader, FrozenPool, Gather]:
    """A train loader over the first half of the classes, a frozen pool over the rest, and their items."""
    points, labels = separable_points(n_classes)
    gather = point_gather(points)
    first, second = np.split(np.arange(n_classes), 2)
    train = SampledPool.of_split(class_table(labels, first), shape, Uniform(), seed=1, split="meta_train")
    test = SampledPool.of_split(class_table(labels, second), shape, Uniform(), seed=1, split="meta_test")
    return EpisodeLoader(pool=train, gather=gather), test.freeze(40), gather


def image_items() -> NDArray[np.uint8]:
    """Grey images (160, 16, 16, 1), ten of each of 16 classes: each class a random pattern, its items with noise."""
    rng = np.random.default_rng(5)
    patterns = rng.integers(0, 256, (16, 1, 16, 16, 1))
    noise = rng.normal(0, 20, (16, 10, 16, 16, 1))
    return np.clip(patterns + noise, 0, 255).astype(np.uint8).reshape(-1, 16, 16, 1)


def image_pools(shape: EpisodeShape = SHAPE) -> tuple[EpisodeLoader, FrozenPool, Gather]:
    """The same as `point_pools` over `image_items`."""
    items = image_items()
    labels = np.repeat(np.arange(16), 10)

    def gather(indices: Int) -> Tensor:
        return ImageKind(image_size=16, channels=1).tensor(torch.from_numpy(items[indices]))

    train = SampledPool.of_split(class_table(labels, np.arange(8)), shape, Uniform(), seed=1, split="meta_train")
    val = SampledPool.of_split(class_table(labels, np.arange(8, 16)), shape, Uniform(), seed=1, split="meta_val")
    return EpisodeLoader(pool=train, gather=gather), val.freeze(12), gather
