"""How a trained learner answers: the modes in which it is scored, the one that is served, and copies of the items.

Shapes: B episodes, S support items, Q query items, I items, N way, D features, V copies of an item.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kshot.algorithms.ensemble import ensemble_of, members_of
from kshot.algorithms.learner import FeatureWise, Learner, QueryNormalised
from kshot.backbones.contract import Backbone, Flatten, recorded_statistics
from kshot.episodes.copies import AtTestTime, Copy
from kshot.episodes.episode import Support

AdaptedT = TypeVar("AdaptedT")

NON_TRANSDUCTIVE = "non-transductive"
TRANSDUCTIVE = "transductive"


def normalization_mode(learner: Learner[AdaptedT]) -> str:
    """The mode in which this learner predicts: whether a prediction may depend on the other queries given with it."""
    one = members_of(learner)[0]
    return TRANSDUCTIVE if isinstance(one, QueryNormalised) and one.query_statistics else NON_TRANSDUCTIVE


def normalization_modes(learner: Learner[AdaptedT]) -> dict[str, Learner[AdaptedT]]:
    """The same weights in every mode in which the learner is scored; the one that is served is always among them.

    Each is asked with the copies of items that `learner.test_time` names, and normalised by its support set where the
    backbone asks for that.
    """
    members = members_of(learner)
    if len(members) > 1:
        of_each = [normalization_modes(member) for member in members]
        return {mode: ensemble_of([modes[mode] for modes in of_each]) for mode in of_each[0]}
    if not isinstance(learner, QueryNormalised):
        return {NON_TRANSDUCTIVE: _with_copies(learner, learner.test_time)}
    return {
        TRANSDUCTIVE: _with_copies(learner.with_query_statistics(True), learner.test_time),
        NON_TRANSDUCTIVE: _with_copies(learner.with_query_statistics(False), learner.test_time),
    }


def served(learner: Learner[AdaptedT]) -> Learner[AdaptedT]:
    """The learner in the mode that is served: a prediction depends on no other query."""
    return normalization_modes(learner)[NON_TRANSDUCTIVE]


def by_support(learner: Learner[Any]) -> Learner[Any]:
    """The learner, made to normalise queries by the support set where its backbone asks for that.

    Learners that do not see items through features alone, such as MAML, normalise by the support set themselves.
    """
    asks = isinstance(learner.backbone, Backbone) and learner.backbone.by_support
    return OnSupportStatistics(learner) if asks and isinstance(learner, FeatureWise) else learner


def _with_copies(learner: Learner[Any], how: AtTestTime) -> Learner[Any]:
    learner = by_support(learner)
    if how.changes_nothing:
        return learner
    backbone = FeaturesOfCopies(learner.backbone, how.copies)
    on_items = OnCopies(learner, backbone, how, copied=_of_items)
    return OnFeaturesOfCopies(on_items) if isinstance(learner, FeatureWise) else on_items


@dataclass(frozen=True, kw_only=True)
class OnStatistics(Generic[AdaptedT]):
    """What a learner adapted to, and the statistics of each of B support sets, by the name of the backbone's buffer."""

    adapted: AdaptedT
    statistics: list[dict[str, Tensor]]


class OnSupportStatistics(Learner[OnStatistics[AdaptedT]]):
    """A learner that sees items through features alone, which are normalised by the support set of their episode.

    So a prediction depends on no other query, and features of an item are others in each episode.
    """

    def __init__(self, learner: Learner[AdaptedT]) -> None:
        super().__init__()
        assert isinstance(learner, FeatureWise)
        self.learner = learner.on_features()
        self.backbone = learner.backbone
        self.needs_population_statistics = learner.needs_population_statistics
        self.max_way = learner.max_way
        self.episodes_at_once = learner.episodes_at_once
        self.test_time = learner.test_time

    def adapt(self, support: Support) -> OnStatistics[AdaptedT]:
        features, found = [], []
        for items in support.x:
            with recorded_statistics(self.backbone) as statistics:
                features.append(self.backbone(items, len(items)))
            found.append(statistics())
        on_features = Support(x=torch.stack(features), y=support.y, n_way=support.n_way, keys=support.keys)
        return OnStatistics(adapted=self.learner.adapt(on_features), statistics=found)

    def classify(self, adapted: OnStatistics[AdaptedT], query_x: Tensor) -> Tensor:
        pairs = zip(adapted.statistics, query_x, strict=True)
        features = [functional_call(self.backbone, statistics, (items, None)) for statistics, items in pairs]
        return self.learner.classify(adapted.adapted, torch.stack(features))


def _of_items(items: Tensor, copy: Copy) -> Tensor:
    return copy.of(items)


class FeaturesOfCopies(Backbone):
    """The features of each copy of an item side by side: (B, *item) -> (B, V * D)."""

    def __init__(self, base: nn.Module, copies: tuple[Copy, ...]) -> None:
        super().__init__()
        self.base = base
        self.copies = copies
        if isinstance(base, Backbone):
            self.n_features = len(copies) * base.n_features
            self.bytes_per_item = base.bytes_per_item + 4 * self.n_features
            self.each_alone = base.each_alone

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return torch.cat([self.base(copy.of(items), n_reference) for copy in self.copies], dim=1)

    def part(self, features: Tensor, copy: Copy) -> Tensor:
        """(..., D) those of one copy, of features (..., V * D)."""
        return features.chunk(len(self.copies), -1)[self.copies.index(copy)]

    def extra_repr(self) -> str:
        return f"copies={self.copies}"


class OnCopies(Learner[AdaptedT]):
    """A learner that adapts to copies of the support items too, and answers by the mean of the logits of a query's.

    The mean of logits is the geometric mean of probabilities, brought to a sum of 1; it is the same at every scale of
    the logits once they are divided by their temperature, which the mean of probabilities is not. `copied` gives a copy
    of items (B, I, ...), or of what stands for them.
    """

    def __init__(
        self,
        learner: Learner[AdaptedT],
        backbone: nn.Module,
        how: AtTestTime,
        *,
        copied: Callable[[Tensor, Copy], Tensor],
    ) -> None:
        super().__init__()
        self.learner = learner
        self.backbone = backbone
        self.needs_population_statistics = learner.needs_population_statistics
        self.max_way = learner.max_way
        self.episodes_at_once = max(1, learner.episodes_at_once // len(how.support.each))
        self.how, self.copied = how, copied

    def adapt(self, support: Support) -> AdaptedT:
        copies = self.how.support.each
        x = torch.cat([self.copied(support.x, copy) for copy in copies], dim=1)
        y = support.y.repeat(1, len(copies))
        return self.learner.adapt(Support(x=x, y=y, n_way=support.n_way, keys=support.keys))

    def classify(self, adapted: AdaptedT, query_x: Tensor) -> Tensor:
        logits = [self.learner.classify(adapted, self.copied(query_x, copy)) for copy in self.how.query.each]
        return torch.stack(logits).mean(0)


class OnFeaturesOfCopies(Learner[AdaptedT]):
    """The same for a learner that sees an item through its features alone, so that each copy is embedded once."""

    def __init__(self, on_items: OnCopies[AdaptedT]) -> None:
        super().__init__()
        self.on_items = on_items
        self.backbone = on_items.backbone
        self.needs_population_statistics = on_items.needs_population_statistics
        self.max_way = on_items.max_way
        self.episodes_at_once = on_items.episodes_at_once

    def adapt(self, support: Support) -> AdaptedT:
        return self.on_items.adapt(support)

    def classify(self, adapted: AdaptedT, query_x: Tensor) -> Tensor:
        return self.on_items.classify(adapted, query_x)

    def on_features(self) -> Learner[Any]:
        learner, backbone = self.on_items.learner, self.backbone
        assert isinstance(learner, FeatureWise)
        assert isinstance(backbone, FeaturesOfCopies)
        return OnCopies(learner.on_features(), Flatten(), self.on_items.how, copied=backbone.part)
