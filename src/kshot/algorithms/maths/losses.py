"""Losses of an episode, and what they are made of.

Shapes: B episodes, S support items, Q query items, N way.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from torch.nn import functional as F

from kshot.episodes.episode import EpisodeBatch
from kshot.settings import STRICT

EpisodeLoss = Callable[[Tensor, EpisodeBatch], Tensor]
"""(logits (B, Q, N) of the queries, their episodes) -> loss of each episode (B,)."""


@settings(frozen=True, kw_only=True, config=STRICT)
class CrossEntropyConfig:
    """Mean cross-entropy of the queries. `label_smoothing`: Szegedy et al., "Rethinking the Inception
    Architecture for Computer Vision", 2016, section 7."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def build(self) -> EpisodeLoss:
        return partial(query_cross_entropy, label_smoothing=self.label_smoothing)


@settings(frozen=True, kw_only=True, config=STRICT)
class FocalConfig:
    """Queries that are answered well weigh less.

    Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4.
    """

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0)] = 2.0

    def build(self) -> EpisodeLoss:
        return partial(focal, gamma=self.gamma)


LossConfig = Annotated[CrossEntropyConfig | FocalConfig, Field(discriminator="name")]


def query_cross_entropy(logits: Tensor, episodes: EpisodeBatch, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the queries of each episode (B,)."""
    return cross_entropy(logits, episodes.query_y, label_smoothing=label_smoothing)


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of each episode (B,) from logits (B, Q, N) and labels (B, Q)."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=label_smoothing)
    return losses.view(labels.shape).mean(1)


def focal(logits: Tensor, episodes: EpisodeBatch, *, gamma: float) -> Tensor:
    """Mean of (1 - p) ** gamma times the cross-entropy, p the probability of the right class: (B,)."""
    labels = episodes.query_y
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * (1 - torch.exp(-losses)) ** gamma).view(labels.shape).mean(1)


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off, for what follows the backbone: distances and inner steps need float32."""
    return torch.autocast(like.device.type, enabled=False)


def one_hot(labels: Tensor, n_way: int, *, like: Tensor) -> Tensor:
    """(B, S, N) of labels (B, S), in the type of `like`. On a CPU torch's own reads the labels' range first."""
    return (labels[:, :, None] == torch.arange(n_way, device=labels.device)).to(like.dtype)
