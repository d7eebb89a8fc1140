"""The contract of every algorithm: adapt to a support set, classify queries against the result.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from kshot.episodes.episode import EpisodeBatch, Support

AdaptedT = TypeVar("AdaptedT")

NON_TRANSDUCTIVE = "non-transductive"
TRANSDUCTIVE = "transductive"


class Learner(nn.Module, ABC, Generic[AdaptedT]):
    """An algorithm with a backbone. Nothing that a method learns from an episode stays in the object.

    `adapt` works under `torch.no_grad` too: an algorithm that needs gradients turns them on itself.
    Serving keeps what `adapt` returns and classifies many queries against it; evaluation composes the
    two; training minimises `meta_loss`. The backbone maps (images (B, C, H, W), n_reference) to
    features (B, D); `n_reference` says whose statistics normalise them, see `backbones/layers/norm.py`.
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
