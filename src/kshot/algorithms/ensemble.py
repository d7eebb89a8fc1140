"""Several trained learners that answer as one.

Lakshminarayanan, Pritzel and Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
2017, section 2.4: the members are trained from different seeds, and their probabilities averaged. Izmailov et al.,
"Averaging Weights Leads to Wider Optima and Better Generalization", 2018, average weights of one training instead,
which costs nothing where it answers.

Shapes: B episodes, I items, Q query items, N way, D features of a member, M members.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import FeatureWise, Learner
from kshot.algorithms.maths.mixtures import log_mean_probability
from kshot.backbones.contract import Backbone, activation_bytes
from kshot.episodes.episode import Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class NoEnsemble:
    name: Literal["none"] = "none"


@settings(frozen=True, kw_only=True, config=STRICT)
class SeedsEnsemble:
    """The votes of models from `seed` and from each of these, which take as long to train and to ask as so many."""

    name: Literal["seeds"] = "seeds"
    of: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.of)) < len(self.of):
            raise ValueError("ensemble.of lists other seeds than seed, each once")
        return self


@settings(frozen=True, kw_only=True, config=STRICT)
class BestEnsemble:
    """The weights of the `k` best validations of one training, averaged to one network, or its votes."""

    name: Literal["best_k"] = "best_k"
    k: Annotated[int, Field(ge=2)] = 3
    average: Literal["weights", "votes"] = "weights"


EnsembleConfig = Annotated[NoEnsemble | SeedsEnsemble | BestEnsemble, Field(discriminator="name")]


class Ensemble(Learner[tuple[Any, ...]]):
    """Answers by the mean probability over members, each of which adapts by itself.

    `parts` gives each member its part of what stands for the items (B, I, ...): the items themselves, or its features.
    """

    def __init__(self, members: Sequence[Learner[Any]], parts: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.parts = parts
        self.needs_population_statistics = any(member.needs_population_statistics for member in members)
        ways = [member.max_way for member in members if member.max_way is not None]
        self.max_way = min(ways, default=None)
        self.episodes_at_once = min(member.episodes_at_once for member in members)

    @cached_property
    def backbone(self) -> nn.Module:  # type: ignore[override]  # made of those of the members, and no part of its own
        return SideBySide([member.backbone for member in members_of(self)])

    def adapt(self, support: Support) -> tuple[Any, ...]:
        return tuple(
            member.adapt(Support(x=x, y=support.y, n_way=support.n_way, keys=support.keys))
            for member, x in zip(members_of(self), self.parts(support.x), strict=True)
        )

    def classify(self, adapted: tuple[Any, ...], query_x: Tensor) -> Tensor:
        """The logarithms (B, Q, N) of the mean probabilities."""
        given = zip(members_of(self), adapted, self.parts(query_x), strict=True)
        return log_mean_probability([member.classify(known, x).float() for member, known, x in given])


class EnsembleOnFeatures(Learner[tuple[Any, ...]]):
    """The same of learners that see an item through its features alone, so that each member embeds it once."""

    def __init__(self, on_items: Ensemble) -> None:
        super().__init__()
        self.on_items = on_items
        self.needs_population_statistics = on_items.needs_population_statistics
        self.max_way = on_items.max_way
        self.episodes_at_once = on_items.episodes_at_once

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        return self.on_items.backbone

    @property
    def members(self) -> nn.ModuleList:
        return self.on_items.members

    def adapt(self, support: Support) -> tuple[Any, ...]:
        return self.on_items.adapt(support)

    def classify(self, adapted: tuple[Any, ...], query_x: Tensor) -> Tensor:
        return self.on_items.classify(adapted, query_x)

    def on_features(self) -> Learner[Any]:
        backbone = self.backbone
        assert isinstance(backbone, SideBySide)
        members = [member.on_features() for member in members_of(self) if isinstance(member, FeatureWise)]
        return Ensemble(members, backbone.part_of_each)


class SideBySide(Backbone):
    """The features of each of M backbones, one after the other: (B, *item) -> (B, M * D)."""

    def __init__(self, bases: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bases = nn.ModuleList(bases)
        found = [base for base in bases if isinstance(base, Backbone)]
        self.n_features = sum(base.n_features for base in found)
        self.each_alone = all(base.each_alone for base in found)
        self.bytes_per_item = max(activation_bytes(base, 1) for base in bases) + 4 * self.n_features

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return torch.cat([base(items, n_reference) for base in self.bases], dim=1)

    def part_of_each(self, features: Tensor) -> Sequence[Tensor]:
        """(..., M * D) -> M of (..., D)."""
        return features.chunk(len(self.bases), -1)


def ensemble_of(members: Sequence[Learner[Any]]) -> Learner[Any]:
    """Learners of one kind as one."""
    together = Ensemble(members, lambda items: [items] * len(members))
    return EnsembleOnFeatures(together) if isinstance(members[0], FeatureWise) else together


def members_of(learner: Learner[Any]) -> Sequence[Learner[Any]]:
    """Those that an ensemble is made of; the learner itself where it is none."""
    if isinstance(learner, Ensemble | EnsembleOnFeatures):
        return [member for member in learner.members if isinstance(member, Learner)]
    return [learner]
