"""What the peers share: the network, the images in memory, and the episode loader of their MAML examples.

Imports torch and numpy alone: it runs in every peer's environment.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.workloads import Shape

BATCHES_AT_ONCE = 10


class Conv4(nn.Module):
    """Four blocks of convolution, batch normalisation, ReLU and max-pooling; with `n_way` a linear head on top."""

    def __init__(self, width: int, n_way: int | None = None, *, running_statistics: bool = False) -> None:
        super().__init__()

        def block(n_in: int) -> nn.Sequential:
            norm = nn.BatchNorm2d(width, track_running_stats=running_statistics)
            return nn.Sequential(nn.Conv2d(n_in, width, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2))

        self.features = nn.Sequential(block(1), block(width), block(width), block(width))
        self.head = nn.Linear(width, n_way) if n_way else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images).flatten(1))
        return logits


def float_images(path: str) -> NDArray[np.float32]:
    """(classes, 20, 1, 28, 28) in 0..1."""
    images: NDArray[np.float32] = np.load(path)[:, :, None].astype(np.float32) / 255
    return images


class LabelledImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """All images as tensors in memory, the best case for a library that asks for one item at a time."""

    def __init__(self, path: str) -> None:
        images = torch.from_numpy(float_images(path))
        self.images = images.flatten(0, 1)
        self.labels = [label for label in range(len(images)) for _ in range(images.shape[1])]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def get_labels(self) -> list[int]:
        return self.labels


def numpy_episodes(path: str, shape: Shape, episodes: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches (support_x, support_y, query_x, query_y), drawn as the Omniglot examples of higher and torchopt do:
    a Python loop over episodes and classes, ten batches ahead.
    """
    images = float_images(path)
    rng = np.random.default_rng(1)

    def shuffled(classes: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        labels = np.repeat(np.arange(shape.n_way), len(classes[0]))
        order = rng.permutation(len(labels))
        return [np.concatenate(classes)[order], labels[order]]

    def episode() -> list[NDArray[Any]]:
        support, query = [], []
        for number in rng.choice(len(images), shape.n_way, replace=False):
            chosen = rng.choice(images.shape[1], shape.k_shot + shape.n_query, replace=False)
            support.append(images[number][chosen[: shape.k_shot]])
            query.append(images[number][chosen[shape.k_shot :]])
        return shuffled(support) + shuffled(query)

    def batch() -> tuple[Tensor, ...]:
        columns = zip(*(episode() for _ in range(episodes)), strict=True)
        return tuple(torch.from_numpy(np.stack(column)) for column in columns)

    while True:
        yield from [batch() for _ in range(BATCHES_AT_ONCE)]
