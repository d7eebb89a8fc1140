"""Bayesian MAML: several heads that adapt together and keep apart from one another.

Shapes: B episodes, S support items, Q query items, N way, D features, M particles, P = N * (D + 1) numbers of a head.
"""

import math
from copy import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.heads import LinearHead, check_max_way
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, one_hot, query_cross_entropy
from kshot.algorithms.maths.mixtures import log_mean_probability
from kshot.algorithms.maths.stein import stein_direction
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class BayesianMAMLConfig:
    name: Literal["bayesian_maml"] = "bayesian_maml"
    particles: Annotated[int, Field(ge=1)] = 5
    inner_lr: Annotated[float, Field(gt=0)] = 1.0  # for each support item; the kernel shares it among the particles
    inner_steps: Annotated[int, Field(ge=1)] = 2
    eval_inner_steps: Annotated[int, Field(ge=1)] = 10
    prior_precision: Annotated[float, Field(ge=0)] = 0.01  # of each number of a head

    about: ClassVar[About] = About(
        use="as anil, where a confidence has to be believed",
        cost="trains nearly like anil; an answer takes steps on several heads",
        source="Yoon et al. 2018",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "BayesianMAML":
        heads = Particles(self.particles, problem.train_shape.n_way, backbone.n_features)
        return BayesianMAML(backbone, self, heads, loss)


class BayesianMAML(MetaLearner[tuple[LinearHead, ...]]):
    """Some heads learn the support set by steps that also push them apart; answers are their mean probability.

    Yoon, Kim, Dia, Kim, Bengio and Ahn, "Bayesian Model-Agnostic Meta-Learning", 2018, section 3.1: Stein variational
    gradient descent (Liu and Wang, 2016, algorithm 1) as the inner loop, from particles that are learned. As in the
    paper's larger experiments the particles share the features, and only the last layer is one of several.

    Deviations: the loss is the cross-entropy of the mean probability of each query, and not the chaser loss of section
    3.2, so that any `meta_train.loss` can be taken; the prior is normal with a fixed precision, without the
    paper's hierarchy of gamma priors; a step is divided by the number of support items, so that one rate does for
    every shot; the features are not adapted; and what `stein_direction` lists. The kernel shares a step among the
    particles: with five, `inner_lr` of 1 moves a head about a third as far as ANIL's would.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: BayesianMAMLConfig,
        particles: "Particles",
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.particles = particles
        self.loss = loss
        self.max_way = particles.heads.shape[1]
        self.inner_steps = config.eval_inner_steps

    def adapt(self, support: Support) -> tuple[LinearHead, ...]:
        """M heads."""
        return self._inner_loop(embed_alone(self.backbone, support.x), support.y, support.n_way, self.inner_steps)

    def classify(self, adapted: tuple[LinearHead, ...], query_x: Tensor) -> Tensor:
        return self._logits(adapted, embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            heads = self._inner_loop(support, episodes.support_y, episodes.n_way, self.config.inner_steps)
            return self.loss(self._logits(heads, query), episodes)

    def on_features(self) -> "BayesianMAML":
        learner = BayesianMAML(Flatten(), self.config, self.particles, self.loss)
        learner.inner_steps = self.inner_steps
        return learner

    def with_inner_steps(self, n_steps: int) -> "BayesianMAML":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    def _logits(self, heads: tuple[LinearHead, ...], features: Tensor) -> Tensor:
        return log_mean_probability([head.logits(features) for head in heads])

    def _inner_loop(self, features: Tensor, labels: Tensor, n_way: int, n_steps: int) -> tuple[LinearHead, ...]:
        """Heads after `n_steps` from features (B, S, D) and labels (B, S)."""
        check_max_way("Bayesian MAML", n_way, self.particles.heads.shape[1])
        n_support = labels.shape[1]
        ones = torch.ones_like(features[:, :, :1])
        x = torch.cat([features, ones], dim=2)[:, None]  # (B, 1, S, D + 1)
        targets = one_hot(labels, n_way, like=features)[:, None]  # (B, 1, S, N)
        heads = self.particles.heads[:, :n_way].expand(len(features), -1, -1, -1)  # (B, M, N, D + 1)
        for _ in range(n_steps):
            error = targets - torch.softmax(x @ heads.mT, dim=3)  # (B, M, S, N)
            of_posterior = error.mT @ x - self.config.prior_precision * heads
            direction = stein_direction(heads.flatten(2), of_posterior.flatten(2)).view_as(heads)
            heads = heads + self.config.inner_lr / n_support * direction
        return tuple(LinearHead(weight=head[:, :, :-1], bias=head[:, :, -1]) for head in heads.unbind(1))


class Particles(nn.Module):
    """Where M heads start: weights and, last, biases (M, N, D + 1), each drawn as a linear layer of torch is."""

    def __init__(self, n_particles: int, n_way: int, n_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_features)
        self.heads = nn.Parameter(torch.empty(n_particles, n_way, n_features + 1).uniform_(-bound, bound))
