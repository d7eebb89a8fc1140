"""Meta-SGD: MAML with a learned rate and direction for every weight.

Shapes: B episodes, S support items, Q query items, N way.
"""

from copy import copy
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem
from kshot.algorithms.maths.fast_weights import Weights, descend
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.algorithms.maths.network import AdaptedWeights, Network
from kshot.backbones.contract import Backbone
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_SMALLEST, _LARGEST = 0.005, 0.1  # of the rates that training starts from: the paper's


@settings(frozen=True, kw_only=True, config=STRICT)
class MetaSGDConfig:
    name: Literal["meta_sgd"] = "meta_sgd"
    inner_steps: Annotated[int, Field(ge=1)] = 1
    eval_inner_steps: Annotated[int, Field(ge=1)] = 1
    first_order: bool = False
    query_statistics: bool = True  # in training, normalise the queries by the queries (transductive)

    about: ClassVar[About] = About(
        use="as maml, where one rate for all weights is too coarse, and one step has to do",
        cost="derivatives of gradient steps: like maml's, and a rate for every weight in memory",
        source="Li et al. 2017",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "MetaSGD":
        return MetaSGD(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


class MetaSGD(MetaLearner[AdaptedWeights]):
    """MAML in which every weight has its own rate, learned with the weights; a negative one goes uphill.

    Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, section 3.2, equation 4
    and algorithm 1. Rates start between 0.005 and 0.1, drawn uniformly. Two deviations: more than one step, which the
    paper names and does not try, is a setting; and queries can be normalised by the support set, as for MAML.
    """

    needs_population_statistics = False
    episodes_at_once = 4

    def __init__(
        self,
        backbone: nn.Module,
        config: MetaSGDConfig,
        *,
        n_features: int,
        n_way: int,
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(n_features, n_way)
        self.config = config
        self.loss = loss
        self.max_way = n_way
        self.inner_steps = config.eval_inner_steps
        self.query_statistics = config.query_statistics
        trained = self._network.parameters(trained=True)
        self._sizes = {name: weight.numel() for name, weight in trained.items()}
        self.rates = nn.Parameter(torch.empty(sum(self._sizes.values())).uniform_(_SMALLEST, _LARGEST))
        """Of all numbers that are trained, in the order of their parameters, each in row order."""

    def adapt(self, support: Support) -> AdaptedWeights:
        weights = self._adapted(support, self.inner_steps)
        return self._network.adapted(weights, support, query_statistics=self.query_statistics)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        return self._network.classify(adapted, query_x, query_statistics=self.query_statistics)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        adapted = self._adapted(episodes.support, self.config.inner_steps)
        return self._network.query_losses(adapted, episodes, self.loss, query_statistics=self.query_statistics)

    def with_query_statistics(self, on: bool) -> "MetaSGD":
        other = copy(self)
        other.query_statistics = on
        return other

    def with_inner_steps(self, n_steps: int) -> "MetaSGD":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    @property
    def _network(self) -> Network:
        return Network(algorithm="Meta-SGD", backbone=self.backbone, head=self.head)

    def _adapted(self, support: Support, n_steps: int) -> Weights:
        """The weights that are trained, after `n_steps` on the support set."""
        network = self._network
        return descend(
            partial(network.support_loss, support=support),
            network.trained(len(support.x), support.n_way),
            rate=network.of_each(self._rates(), 1, support.n_way),
            n_steps=n_steps,
            second_order=not self.config.first_order,
        )

    def _rates(self) -> Weights:
        """The rate of each number of each parameter, by its name and in its shape."""
        parts = dict(zip(self._sizes, torch.split(self.rates, list(self._sizes.values())), strict=True))
        trained = self._network.parameters(trained=True)
        return {name: parts[name].view_as(weight) for name, weight in trained.items()}
