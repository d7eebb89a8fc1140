"""The contract of every algorithm: adapt to a support set, classify queries against the result.

Shapes: B episodes, S support items, Q query items, N way, D features, C classes of the training.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from kshot.backbones.contract import Backbone, calibrate, items_at_once
from kshot.episodes.copies import AtTestTime
from kshot.episodes.episode import EpisodeBatch, EpisodeShape, Support

AdaptedT = TypeVar("AdaptedT")

_FROM_FEATURES = 16  # episodes that are taken together at least, where their items are as good as features


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a learner is built for: the episodes of its training, and how many classes these are drawn from.

    n_train_classes is None for a model that was saved before the number was kept.
    """

    train_shape: EpisodeShape
    n_train_classes: int | None


@dataclass(frozen=True, kw_only=True)
class About:
    """What to know before an algorithm is chosen, each in a few words; the `about` of its settings."""

    use: str
    """For which data or need."""
    cost: str
    """Of training, and of an answer."""
    source: str
    """Authors and year."""


class Learner(nn.Module, ABC, Generic[AdaptedT]):
    """An algorithm with a backbone. Nothing that a method learns from an episode stays in the object.

    `adapt` works under `torch.no_grad` too: an algorithm that needs gradients turns them on itself. Serving keeps what
    `adapt` returns and classifies many queries against it; evaluation composes the two. The backbone maps (items
    (B, *item), n_reference) to features (B, D); `n_reference` says whose statistics normalise them, see
    `backbones/contract.py`.
    """

    backbone: nn.Module
    needs_population_statistics: bool = True
    """Whether `adapt` and `classify` read the backbone's population statistics."""
    max_way: int | None = None
    """The largest number of classes that an episode may have; None without a limit."""
    episodes_at_once: int = 1
    """How many episodes `adapt` and `meta_loss` are best given; memory grows with it."""
    test_time: AtTestTime = AtTestTime()
    """With which copies of items it is to be asked, once it is trained: see `answering`."""

    @abstractmethod
    def adapt(self, support: Support) -> AdaptedT:
        """What the support set of each of B episodes teaches. Raises EpisodeError beyond `max_way`."""

    @abstractmethod
    def classify(self, adapted: AdaptedT, query_x: Tensor) -> Tensor:
        """Logits (B, Q, N) of queries (B, Q, *item)."""


class MetaLearner(Learner[AdaptedT]):
    """A learner that is trained on episodes."""

    @abstractmethod
    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        """Loss of each episode (B,), differentiable with respect to the parameters.

        `done` is the part of the training that is over, 0 to 1. Noise is drawn from `episodes.keys`, so that the loss
        of an episode is the same whatever stands beside it in the batch.
        """


class TransferLearner(Learner[AdaptedT]):
    """A learner whose backbone is trained to tell the meta_train classes apart."""

    @abstractmethod
    def class_logits(self, items: Tensor) -> Tensor:
        """Logits (B, C) of items (B, *item) over the meta_train classes, normalised by the batch's own statistics."""


@runtime_checkable
class FeatureWise(Protocol):
    """A learner that sees an item only through what its backbone makes of the item alone: `backbone(items, None)`.

    So each item need be embedded once, also for several learners that share a backbone.
    """

    def on_features(self) -> Learner[Any]:
        """The same learner for episodes whose items are features already."""
        ...


@runtime_checkable
class Centred(Protocol):
    """A learner that knows the mean feature of the meta_train items."""

    def set_centre(self, batches: Iterable[Tensor]) -> None:
        """Set it to the mean over `batches` of items, each (B, *item), every item embedded alone."""
        ...


@runtime_checkable
class Stepwise(Protocol):
    """A learner that adapts in steps of gradient descent."""

    inner_steps: int

    def with_inner_steps(self, n_steps: int) -> Self:
        """The same weights, adapting in `n_steps`, which may be 0."""
        ...


@runtime_checkable
class QueryNormalised(Protocol):
    """A learner that may use all queries of an episode, to normalise them or to adapt: that is transductive."""

    query_statistics: bool

    def with_query_statistics(self, on: bool) -> Self:
        """The same weights with or without them."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """A learner with a setting that is chosen by its accuracy on meta_val, once it is trained."""

    @property
    def choices(self) -> Sequence[float]:
        """What there is to choose from, at least one."""
        ...

    def choose(self, choice: float) -> None:
        """Keep it with the weights."""
        ...


def episodes_at_once(learner: Learner[Any], items_per_episode: int, budget_bytes: int) -> int:
    """How many episodes, at least one, to give the learner together: as many as it likes and as activations fit.

    Where memory bounds it, a power of two: so 2 or 4 workers sum in the same order as one.
    """
    fit = max(1, items_at_once(learner.backbone, budget_bytes) // items_per_episode)
    likes = learner.episodes_at_once
    if _takes_each_alone(learner.backbone):
        likes = max(likes, _FROM_FEATURES)
    return min(likes, 1 << (fit.bit_length() - 1))


@torch.no_grad()
def calibrate_learner(learner: Learner[Any], batches: Callable[[], Iterable[Tensor]]) -> None:
    """Set what a learner knows of the meta_train items as a whole, from `batches()` of them, each (B, *item)."""
    if learner.needs_population_statistics:
        calibrate(learner.backbone, batches())
    if isinstance(learner, Centred):
        learner.set_centre(batches())


def embed_alone(backbone: nn.Module, items: Tensor) -> Tensor:
    """Features (B, I, D) of items (B, I, *item), each embedded alone."""
    features: Tensor = backbone(items.flatten(0, 1), None)
    return features.view(*items.shape[:2], -1)


def embed_jointly(backbone: nn.Module, episodes: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """Features of support (B, S, D) and query (B, Q, D) in training: normalised by the episode's own items.

    Those are all of them, or the support set alone where the backbone asks for that.
    """
    items = torch.cat([episodes.support_x, episodes.query_x], dim=1)
    n_support = episodes.support_x.shape[1]
    if _takes_each_alone(backbone):
        features = embed_alone(backbone, items)
        return features[:, :n_support], features[:, n_support:]
    by_support = isinstance(backbone, Backbone) and backbone.by_support
    n_reference = n_support if by_support else items.shape[1]
    features = torch.stack([backbone(episode, n_reference) for episode in items])
    return features[:, :n_support], features[:, n_support:]


def _takes_each_alone(backbone: nn.Module) -> bool:
    return isinstance(backbone, Backbone) and backbone.each_alone
