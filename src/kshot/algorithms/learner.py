"""The contract of every algorithm: adapt to a support set, classify queries against the result.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.episode import EpisodeBatch, Support
from kshot.errors import EpisodeError

AdaptedT = TypeVar("AdaptedT")

NON_TRANSDUCTIVE = "non-transductive"
TRANSDUCTIVE = "transductive"


class Learner(nn.Module, ABC, Generic[AdaptedT]):
    """An algorithm with a backbone. Nothing that a method learns from an episode stays in the object.

    `adapt` works under `torch.no_grad` too: an algorithm that needs gradients turns them on itself.
    Serving keeps what `adapt` returns and classifies many queries against it; evaluation composes the
    two; training minimises `meta_loss`. The backbone maps (images (B, C, H, W), n_reference) to
    features (B, D); `n_reference` says whose statistics normalise them, see `backbones/backbone.py`.
    """

    backbone: nn.Module
    needs_population_statistics: bool
    """Whether `adapt` and `classify` read the backbone's population statistics."""
    max_way: int | None
    """The most classes that an episode may have; None without a limit."""
    episodes_at_once: int = 1
    """How many episodes `adapt` and `meta_loss` are best given; memory grows with it."""

    inner_steps: int | None = None
    """The gradient steps that `adapt` takes; None where it takes none."""

    @property
    def transductive(self) -> bool:
        """Whether a prediction may depend on the other queries given with it."""
        return False

    @abstractmethod
    def adapt(self, support: Support) -> AdaptedT:
        """What the support set of each of B episodes teaches. Raises EpisodeError beyond `max_way`."""

    @abstractmethod
    def classify(self, adapted: AdaptedT, query_x: Tensor) -> Tensor:
        """Logits (B, Q, N) of queries (B, Q, *item)."""

    @abstractmethod
    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        """Loss of each episode (B,), differentiable with respect to the parameters."""

    def normalization_modes(self) -> dict[str, "Learner[AdaptedT]"]:
        """The same weights in every normalisation mode in which this algorithm is scored."""
        return {TRANSDUCTIVE if self.transductive else NON_TRANSDUCTIVE: self}

    def with_inner_steps(self, n_steps: int) -> "Learner[AdaptedT]":
        """The same weights, adapting in `n_steps`, which may be 0; for a learner that has `inner_steps`."""
        raise NotImplementedError(f"{type(self).__name__} does not adapt in steps")


class MetricLearner(Learner[AdaptedT]):
    """A learner that sees an image only through its own features, so each image need be embedded once."""

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W), each embedded alone."""
        features: Tensor = self.backbone(images, None)
        return features

    def embed_jointly(self, episodes: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Features of support (B, S, D) and query (B, Q, D) in training: normalised by the episode's own images."""
        images = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        features = torch.stack([self.backbone(episode, len(episode)) for episode in images])
        n_support = episodes.support_x.shape[1]
        return features[:, :n_support], features[:, n_support:]

    def embed_episodes(self, items: Tensor) -> Tensor:
        """Features (B, I, D) of items (B, I, *item), each embedded alone."""
        return self.embed(items.flatten(0, 1)).view(*items.shape[:2], -1)

    @abstractmethod
    def on_features(self) -> Self:
        """The same learner for episodes whose items are already features."""


@runtime_checkable
class EpisodeWise(Protocol):
    """A backbone that runs several episodes, each under weights of its own, in one pass."""

    def forward_each(self, weights: Mapping[str, Tensor], images: Tensor, n_reference: int) -> Tensor:
        """(T, B, D) of images (T, B, C, H, W); weights: (T, *shape) for each parameter by its name."""
        ...


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off, for what follows the backbone: distances and inner steps want float32."""
    return torch.autocast(like.device.type, enabled=False)


class Flatten(nn.Module):
    """The backbone that does nothing: items (B, ...) -> (B, D). Pixels, or features made before."""

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items.flatten(1)


def check_max_way(algorithm: str, n_way: int, max_way: int) -> None:
    """Raise EpisodeError when an episode has more classes than a head of `max_way` rows tells apart."""
    if n_way > max_way:
        raise EpisodeError(
            f"found {n_way} classes; this {algorithm} head was trained for {max_way}; "
            f"next: train with task_pool.meta_train.shape.n_way: {n_way}, or use protonet"
        )


def one_hot(labels: Tensor, n_way: int, *, like: Tensor) -> Tensor:
    """(B, S, N) of labels (B, S), in the type of `like`. On a CPU torch's own reads the labels' range first."""
    return (labels[:, :, None] == torch.arange(n_way, device=labels.device)).to(like.dtype)


def cross_entropy(logits: Tensor, query_y: Tensor) -> Tensor:
    """Mean cross-entropy of each episode (B,) from logits (B, Q, N) and labels (B, Q)."""
    losses = F.cross_entropy(logits.flatten(0, 1), query_y.flatten(), reduction="none")
    return losses.view(query_y.shape).mean(1)
