"""Linear heads: those of episodes, and the classifier of the training classes.

Shapes: B episodes, I items, N way, D features, C classes of the training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.errors import EpisodeError


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """The linear head of each of B episodes: weight (B, N, D), bias (B, N)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(B, I, N) of features (B, I, D)."""
        return torch.baddbmm(self.bias[:, None], features, self.weight.transpose(1, 2))


class CosineHead(nn.Module):
    """Logits (I, C) of features (I, D): `scale` times the cosine to the weight of each class."""

    def __init__(self, n_features: int, n_classes: int, *, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_classes, n_features))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


def class_head(n_features: int, n_classes: int | None) -> nn.Linear | None:
    """A classifier of the training classes; None where their number is not known."""
    return None if n_classes is None else nn.Linear(n_features, n_classes)


def class_logits(backbone: nn.Module, head: nn.Module | None, items: Tensor) -> Tensor:
    """Logits (I, C) of items (I, *item) over the training classes, normalised by the batch's own statistics."""
    if head is None:
        raise EpisodeError("this learner has no head for the training classes; next: build it with class_head")
    logits: Tensor = head(backbone(items, len(items)))
    return logits


def check_max_way(algorithm: str, n_way: int, max_way: int) -> None:
    """Raise EpisodeError when an episode has more classes than a head of `max_way` rows tells apart."""
    if n_way > max_way:
        raise EpisodeError(
            f"found {n_way} classes; this {algorithm} head was trained for {max_way}; "
            f"next: train with task_pool.meta_train.shape.n_way: {n_way}, or use protonet"
        )
