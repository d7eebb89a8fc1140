"""MAML++: MAML with what makes its training stable.

Shapes: B episodes, S support items, Q query items, N way, T inner steps.
"""

from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem
from kshot.algorithms.maths.fast_weights import Weights, gradients_at, moved
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.algorithms.maths.network import AdaptedWeights, Network
from kshot.backbones.contract import Backbone
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_LEAST = 0.03  # of the weight of each loss but the last, as a part of an equal share: the authors' code


@settings(frozen=True, kw_only=True, config=STRICT)
class MAMLPlusPlusConfig:
    """`multi_step_part` and `first_order_part` are parts of the training, from its start, 0 to 1."""

    name: Literal["mamlpp"] = "mamlpp"
    inner_lr: Annotated[float, Field(gt=0)] = 0.1  # that all rates start from
    inner_steps: Annotated[int, Field(ge=1)] = 5
    multi_step_part: Annotated[float, Field(ge=0, le=1)] = 0.1  # with a loss after every step
    first_order_part: Annotated[float, Field(ge=0, le=1)] = 0.0  # without second derivatives
    query_statistics: bool = True  # in training, normalise the queries by the queries (transductive)

    about: ClassVar[About] = About(
        use="as maml, where its training swings: rates and normalisation of each step are learned",
        cost="derivatives of several gradient steps and of a loss after each: some times maml's",
        source="Antoniou et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "MAMLPlusPlus":
        return MAMLPlusPlus(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


class MAMLPlusPlus(MetaLearner[AdaptedWeights]):
    """MAML with a loss after every step, rates and normalisation of their own for every step, and a first-order start.

    Antoniou, Edwards and Storkey, "How to train your MAML", 2019, section 4: multi-step loss (equation 4; annealed as
    in the authors' code, and only the last step's loss counts after `multi_step_part`), learned rates per layer and
    step (here per tensor, as in their code), scales and shifts of the normalisation per step, which the inner loop
    leaves alone, and derivative-order annealing. The paper is of first order for 50 epochs; the authors' settings for
    Omniglot never are, and so is the default.

    Deviations: running statistics per step are not kept, since the authors' code normalises by each batch all the same;
    the cosine schedule of the outer rate is the training's own and ends at 0; steps beyond those of the training take
    the last one's rates; queries can be normalised by the support set, as for MAML; and answers are those of one
    checkpoint, not of five.
    """

    needs_population_statistics = False
    episodes_at_once = 4

    def __init__(
        self,
        backbone: nn.Module,
        config: MAMLPlusPlusConfig,
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
        self.inner_steps = config.inner_steps
        self.query_statistics = config.query_statistics
        trained, norms = self._network.parameters(trained=True), self._network.norms()
        self._adapting = [name for name in trained if name not in norms]
        self.rates = nn.Parameter(torch.full((config.inner_steps, len(self._adapting)), config.inner_lr))
        self._norm_sizes = {name: trained[name].numel() for name in norms}
        n_further, n_numbers = config.inner_steps - 1, sum(self._norm_sizes.values())
        self.norm_offsets = nn.Parameter(torch.zeros(n_further, n_numbers)) if n_further and n_numbers else None
        """What each step after the first adds to the backbone's scales and shifts, in the order of their names."""

    def adapt(self, support: Support) -> AdaptedWeights:
        weights = self._network.trained(len(support.x), support.n_way)
        for stepped in self._steps(support, self.inner_steps, second_order=False):
            weights = stepped
        return self._network.adapted(weights, support, query_statistics=self.query_statistics)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        return self._network.classify(adapted, query_x, query_statistics=self.query_statistics)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        importance = loss_weights(self.config.inner_steps, done, self.config.multi_step_part)
        second_order = done >= self.config.first_order_part
        steps = self._steps(episodes.support, self.config.inner_steps, second_order=second_order)
        losses = [
            weight * self._network.query_losses(adapted, episodes, self.loss, query_statistics=self.query_statistics)
            for weight, adapted in zip(importance, steps, strict=True)
            if weight
        ]
        return torch.stack(losses).sum(0)

    def with_query_statistics(self, on: bool) -> "MAMLPlusPlus":
        other = copy(self)
        other.query_statistics = on
        return other

    def with_inner_steps(self, n_steps: int) -> "MAMLPlusPlus":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    @property
    def _network(self) -> Network:
        return Network(algorithm="MAML++", backbone=self.backbone, head=self.head)

    def _steps(self, support: Support, n_steps: int, *, second_order: bool) -> Iterator[Weights]:
        """The weights that are trained after each of `n_steps` on the support set, with that step's normalisation."""
        network = self._network
        start = network.trained(len(support.x), support.n_way)
        fast = {name: start[name] for name in self._adapting if name in start}
        for step in range(n_steps):
            of_step = min(step, self.config.inner_steps - 1)
            norms = network.of_each(self._norms(of_step), len(support.x), support.n_way)
            loss = partial(_with, norms, partial(network.support_loss, support=support))
            rates = dict(zip(self._adapting, self.rates[of_step], strict=True))
            fast = moved(*gradients_at(fast, loss, second_order=second_order), rates)
            yield fast | norms

    def _norms(self, step: int) -> Weights:
        """The scales and shifts of one step, by their names."""
        trained = self._network.parameters(trained=True)
        own = {name: trained[name] for name in self._norm_sizes if name in trained}
        if step == 0 or self.norm_offsets is None:
            return own
        parts = torch.split(self.norm_offsets[step - 1], list(self._norm_sizes.values()))
        offsets = dict(zip(self._norm_sizes, parts, strict=True))
        return {name: weight + offsets[name].view_as(weight) for name, weight in own.items()}


def loss_weights(n_steps: int, done: float, multi_step_part: float) -> list[float]:
    """How much the loss after each step counts, with a sum of 1.

    Equal at first; all but the last fall linearly until `multi_step_part` of the training is done, to a part of their
    share at least. After that, or with a part of 0, the last one alone counts.
    """
    if done >= multi_step_part:
        return [0.0] * (n_steps - 1) + [1.0]
    share = max(1 - done / multi_step_part, _LEAST) / n_steps
    return [share] * (n_steps - 1) + [1 - (n_steps - 1) * share]


def _with(others: Weights, loss: "partial[Tensor]", weights: Weights) -> Tensor:
    return loss(weights | others)
