"""Losses of an episode, and what they are made of.

Shapes: B episodes, S support items, Q query items, N way.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from torch.nn import functional as F

from kshot.episodes.episode import MixedLabels
from kshot.settings import STRICT


class Labelled(Protocol):
    """Queries with labels query_y (B, Q), and those that they were mixed with: an `EpisodeBatch`."""

    @property
    def query_y(self) -> Tensor: ...

    @property
    def mixed(self) -> MixedLabels | None: ...


EpisodeLoss = Callable[[Tensor, Labelled], Tensor]
"""(logits (B, Q, N) of the queries, their episodes) -> loss of each episode (B,)."""


@settings(frozen=True, kw_only=True, config=STRICT)
class CrossEntropyConfig:
    """Mean cross-entropy of the queries. `label_smoothing`: Szegedy et al., "Rethinking the Inception
    Architecture for Computer Vision", 2016, section 7."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def build(self, class_counts: Tensor | None = None) -> EpisodeLoss:
        return partial(query_cross_entropy, label_smoothing=self.label_smoothing)


@settings(frozen=True, kw_only=True, config=STRICT)
class FocalConfig:
    """Queries that are answered well weigh less.

    Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4.
    """

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0)] = 2.0

    def build(self, class_counts: Tensor | None = None) -> EpisodeLoss:
        return partial(focal, gamma=self.gamma)


@settings(frozen=True, kw_only=True, config=STRICT)
class ClassWeightedConfig:
    """Cross-entropy with weights of classes, (number of items) ** -`exponent`; 1 on average over the items."""

    name: Literal["class_weighted"] = "class_weighted"
    exponent: Annotated[float, Field(ge=0, le=1)] = 0.5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def build(self, class_counts: Tensor | None = None) -> EpisodeLoss:
        if class_counts is None:  # of episodes, where every class has the same number of queries
            return partial(query_cross_entropy, label_smoothing=self.label_smoothing)
        weights = class_counts.float() ** -self.exponent
        weights = weights * class_counts.sum() / (weights * class_counts).sum()
        return partial(query_cross_entropy, label_smoothing=self.label_smoothing, class_weights=weights)


@settings(frozen=True, kw_only=True, config=STRICT)
class SquaredErrorConfig:
    """Each class is judged apart: the squared error of the sigmoid of its logit, 1 for the right class, else 0.

    Sung et al., "Learning to Compare: Relation Network for Few-Shot Learning", 2018, equation 2.
    """

    name: Literal["squared_error"] = "squared_error"

    def build(self, class_counts: Tensor | None = None) -> EpisodeLoss:
        return squared_error


LossConfig = Annotated[
    CrossEntropyConfig | FocalConfig | ClassWeightedConfig | SquaredErrorConfig, Field(discriminator="name")
]
"""Each has `build(class_counts)`, which gives the loss; class_counts (N,) where it is for the classes of meta_train."""


def query_cross_entropy(
    logits: Tensor, episodes: Labelled, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of the queries of each episode (B,)."""
    loss = partial(cross_entropy, logits, label_smoothing=label_smoothing, class_weights=class_weights)
    return _of_mixed(loss, episodes)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of each episode (B,) from logits (B, Q, N) and labels (B, Q).

    `class_weights` (N,) multiply the losses of the items of each class.
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), class_weights, reduction="none", label_smoothing=label_smoothing
    )
    return losses.view(labels.shape).mean(1)


def focal(logits: Tensor, episodes: Labelled, *, gamma: float) -> Tensor:
    """Mean of (1 - p) ** gamma times the cross-entropy, p the probability of the right class: (B,)."""

    def loss(labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * (1 - torch.exp(-losses)) ** gamma).view(labels.shape).mean(1)

    return _of_mixed(loss, episodes)


def squared_error(logits: Tensor, episodes: Labelled) -> Tensor:
    """Sum over the classes, and mean over the queries, of (sigmoid(logit) - 1 or 0) ** 2: (B,)."""

    def loss(labels: Tensor) -> Tensor:
        error = torch.sigmoid(logits) - one_hot(labels, logits.shape[2], like=logits)
        return error.square().sum(2).mean(1)

    return _of_mixed(loss, episodes)


def _of_mixed(loss: Callable[[Tensor], Tensor], queries: Labelled) -> Tensor:
    """The loss (B,) of labels (B, Q), averaged over both labels of queries that were mixed."""
    own = loss(queries.query_y)
    if queries.mixed is None:
        return own
    return queries.mixed.share * own + (1 - queries.mixed.share) * loss(queries.mixed.y)


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off, for what follows the backbone: distances and inner steps need float32."""
    return torch.autocast(like.device.type, enabled=False)


def one_hot(labels: Tensor, n_way: int, *, like: Tensor) -> Tensor:
    """(B, S, N) of labels (B, S), in the type of `like`. On a CPU torch's own reads the labels' range first."""
    return (labels[:, :, None] == torch.arange(n_way, device=labels.device)).to(like.dtype)
