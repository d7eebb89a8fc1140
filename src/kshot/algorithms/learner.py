"""The contract of every algorithm: adapt to a support set, classify queries against the result.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from kshot.episode import EpisodeBatch, Support

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


class MetricLearner(Learner[AdaptedT]):
    """A learner that sees an image only through its own features, so each image need be embedded once."""

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, C, H, W), each embedded alone."""
        features: Tensor = self.backbone(images, None)
        return features

    @abstractmethod
    def on_features(self) -> Self:
        """The same learner for episodes whose items are already features."""


class Flatten(nn.Module):
    """The backbone that does nothing: items (B, ...) -> (B, D). Pixels, or features made before."""

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items.flatten(1)


def cross_entropy(logits: Tensor, query_y: Tensor) -> Tensor:
    """Mean cross-entropy of each episode (B,) from logits (B, Q, N) and labels (B, Q)."""
    losses = F.cross_entropy(logits.flatten(0, 1), query_y.flatten(), reduction="none")
    return losses.view(query_y.shape).mean(1)
