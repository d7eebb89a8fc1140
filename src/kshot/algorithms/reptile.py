"""Reptile: towards the weights that training on each task leads to.

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
from kshot.algorithms.maths.fast_weights import Weights, gradients_at, leaves, with_gradients
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.algorithms.maths.network import AdaptedWeights, Network
from kshot.backbones.contract import Backbone
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.seeding import random_words
from kshot.settings import STRICT

_DECAY, _EPS = 0.999, 1e-8  # of Adam
_ORDER = 17  # the stream of an episode's draws that shuffles its support set


@settings(frozen=True, kw_only=True, config=STRICT)
class ReptileConfig:
    """Of `inner_steps` in training, the last is on the queries and each other one on `inner_batch` support items."""

    name: Literal["reptile"] = "reptile"
    inner_lr: Annotated[float, Field(gt=0)] = 0.001
    inner_steps: Annotated[int, Field(ge=2)] = 5
    inner_batch: Annotated[int, Field(ge=1)] = 10
    eval_inner_steps: Annotated[int, Field(ge=1)] = 50

    about: ClassVar[About] = About(
        use="as maml, where derivatives of gradient steps do not fit into memory",
        cost="several plain gradient steps per episode; an answer takes many steps on the whole network",
        source="Nichol et al. 2018",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Reptile":
        return Reptile(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


class Reptile(MetaLearner[AdaptedWeights]):
    """Train on a task for some steps, and move the start a little towards where they ended; no derivative of them.

    Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, section 3, algorithm 2. The gradient
    of a loss is given as start minus end, so `sgd` without momentum and with an `outer_lr` of epsilon is the paper's
    update, and other optimisers can be taken, as section 3 proposes. Inner steps are Adam's with beta1 = 0
    (section 6.1).

    A task of the paper is not split. So here all items of a training episode are trained on: minibatches of the
    shuffled support set, and the queries as the last minibatch, of which `meta_train.loss` is taken. Deviations: Adam's
    second moment starts anew for every task, where the authors' code carries it on, so that an episode does not depend
    on the ones before; and outside training every step takes the whole support set, so that its order does not matter.

    Each minibatch is normalised by itself. Queries are normalised by the support set, or by themselves in the
    transductive mode; the authors normalise a query together with the support set.
    """

    needs_population_statistics = False
    episodes_at_once = 4

    def __init__(
        self,
        backbone: nn.Module,
        config: ReptileConfig,
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
        self.query_statistics = False

    @torch.no_grad()
    def adapt(self, support: Support) -> AdaptedWeights:
        network = self._network
        fit = _Fit(network.trained(len(support.x), support.n_way), self.config.inner_lr)
        for _ in range(self.inner_steps):
            fit.step(gradients_at(fit.weights, partial(network.support_loss, support=support), second_order=False)[1])
        return network.adapted(fit.weights, support, query_statistics=self.query_statistics)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        return self._network.classify(adapted, query_x, query_statistics=self.query_statistics)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        """Losses of the queries before the last step. Their gradients are start minus end."""
        network = self._network
        start = network.trained(len(episodes), episodes.n_way)
        with torch.no_grad():
            fit = _Fit(start, self.config.inner_lr)
            for step in range(self.config.inner_steps - 1):
                part = minibatch(episodes.support, episodes.keys, step, self.config.inner_batch)
                fit.step(gradients_at(fit.weights, partial(network.support_loss, support=part), second_order=False)[1])
        weights = leaves(fit.weights)
        losses = network.query_losses(weights, episodes, self.loss, query_statistics=True)
        last = torch.autograd.grad(losses.sum(), list(weights.values()))
        with torch.no_grad():
            fit.step(last)
            gradients = [start[name] - end for name, end in fit.weights.items()]
        return with_gradients(losses.detach(), gradients, start)

    def with_query_statistics(self, on: bool) -> "Reptile":
        other = copy(self)
        other.query_statistics = on
        return other

    def with_inner_steps(self, n_steps: int) -> "Reptile":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    @property
    def _network(self) -> Network:
        return Network(algorithm="Reptile", backbone=self.backbone, head=self.head)


def minibatch(support: Support, keys: Tensor, number: int, size: int) -> Support:
    """Minibatch `number` from 0 of each episode's support set in an order drawn from its key (B,), over and over."""
    n_support = support.y.shape[1]
    items = torch.arange(n_support, device=keys.device)
    order = random_words(random_words(keys, torch.full_like(keys, _ORDER))[:, None], items).argsort(1)
    size = min(size, n_support)
    positions = (torch.arange(size, device=keys.device) + number * size) % n_support
    chosen = order.index_select(1, positions)
    episode = torch.arange(len(keys), device=keys.device)[:, None]
    return Support(x=support.x[episode, chosen], y=support.y[episode, chosen], n_way=support.n_way)


class _Fit:
    """Weights under Adam with beta1 = 0: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015."""

    def __init__(self, weights: Weights, rate: float) -> None:
        self.weights = weights
        self._rate = rate
        self._squares = [torch.zeros_like(weight) for weight in weights.values()]
        self._n_steps = 0

    def step(self, gradients: tuple[Tensor, ...]) -> None:
        self._n_steps += 1
        unbiased = 1 - _DECAY**self._n_steps
        steps = []
        for square, gradient in zip(self._squares, gradients, strict=True):
            square.mul_(_DECAY).addcmul_(gradient, gradient, value=1 - _DECAY)
            steps.append(gradient / ((square / unbiased).sqrt() + _EPS))
        self.weights = {
            name: torch.add(weight, step, alpha=-self._rate)
            for (name, weight), step in zip(self.weights.items(), steps, strict=True)
        }
