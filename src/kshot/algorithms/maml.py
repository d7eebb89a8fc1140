"""Model-Agnostic Meta-Learning, second and first order.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from copy import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem
from kshot.algorithms.maths.fast_weights import (
    Weights,
    descend,
    embed_under,
    for_each,
    leaves,
    of_episode,
    with_gradients,
)
from kshot.algorithms.maths.heads import check_max_way
from kshot.algorithms.maths.losses import EpisodeLoss, cross_entropy, full_precision, query_cross_entropy
from kshot.backbones.contract import Backbone, recorded_statistics
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_HEAD_WEIGHT, _HEAD_BIAS, _BACKBONE = "head.weight", "head.bias", "backbone."
_HEAD = (_HEAD_WEIGHT, _HEAD_BIAS)


@settings(frozen=True, kw_only=True, config=STRICT)
class MAMLConfig:
    name: Literal["maml"] = "maml"
    inner_lr: Annotated[float, Field(gt=0)] = 0.4
    inner_steps: Annotated[int, Field(ge=1)] = 1
    eval_inner_steps: Annotated[int, Field(ge=1)] = 10
    first_order: bool = False
    query_statistics: bool = True  # in training, normalise the queries by the queries (transductive)

    about: ClassVar[About] = About(
        use="tasks that differ in more than their classes, such as in what a label means",
        cost="derivatives of gradient steps: several times protonet's; an answer takes steps on the whole network",
        source="Finn et al. 2017",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "MAML":
        return MAML(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


@dataclass(frozen=True, kw_only=True)
class AdaptedWeights:
    """Weights of B episodes, (B, *shape) by name, with the statistics of each support set as the backbone's buffers.

    Where the queries are normalised by themselves there are no such buffers among them.
    """

    weights: Weights


class MAML(MetaLearner[AdaptedWeights]):
    """A few steps of gradient descent adapt all weights; training looks for weights from which they lead far.

    Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
    algorithm 2; with `first_order`, section 5.2.

    The head has one row for each class of a training episode; an episode of fewer classes uses the
    first rows. The paper normalises queries by the statistics of all queries, which is transductive:
    `with_query_statistics` gives the same weights also with the statistics of the support set, where a
    prediction depends on no other query.

    The inner loop runs a few episodes side by side where the backbone can (`EpisodeWise`), else one by
    one. The query pass is differentiated at the adapted weights and its graph dropped, episode by episode;
    its gradient then goes back through the inner loop alone. By the chain rule that is the meta-gradient.
    """

    needs_population_statistics = False
    episodes_at_once = 4

    def __init__(
        self,
        backbone: nn.Module,
        config: MAMLConfig,
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

    def adapt(self, support: Support) -> AdaptedWeights:
        weights = self._adapted(support, self.inner_steps) | self._frozen(len(support.x), support.n_way)
        if not self.query_statistics:
            weights |= self._statistics(weights, support.x)
        return AdaptedWeights(weights=weights)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        n_reference = query_x.shape[1] if self.query_statistics else None
        logits = [
            self._logits(of_episode(adapted.weights, i), query[None], n_reference) for i, query in enumerate(query_x)
        ]
        return torch.cat(logits)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        adapted = self._adapted(episodes.support, self.config.inner_steps)
        losses = []
        by_weight = [torch.empty_like(weight) for weight in adapted.values()]  # torch.cat loses their strides
        for i, episode in enumerate(episodes.one_by_one()):
            loss, gradients = self._query_gradients(of_episode(adapted, i), episode)
            losses.append(loss)
            for of_all, gradient in zip(by_weight, gradients, strict=True):
                of_all[i : i + 1] = gradient
        return with_gradients(torch.cat(losses), by_weight, adapted)

    def with_query_statistics(self, on: bool) -> "MAML":
        other = copy(self)
        other.query_statistics = on
        return other

    def with_inner_steps(self, n_steps: int) -> "MAML":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    def _adapted(self, support: Support, n_steps: int) -> Weights:
        """The weights that are trained, after `n_steps` of gradient descent on the support set."""
        check_max_way("MAML", support.n_way, self.head.out_features)
        frozen = self._frozen(len(support.x), support.n_way)

        def loss(weights: Weights) -> Tensor:
            return cross_entropy(self._logits(weights | frozen, support.x, support.x.shape[1]), support.y).sum()

        return descend(
            loss,
            self._initial(len(support.x), support.n_way, trained=True),
            rate=self.config.inner_lr,
            n_steps=n_steps,
            second_order=not self.config.first_order,
        )

    def _frozen(self, n_episodes: int, n_way: int) -> Weights:
        return self._initial(n_episodes, n_way, trained=False)

    def _initial(self, n_episodes: int, n_way: int, *, trained: bool) -> Weights:
        """The weights of the learner, of those that are trained or of the frozen ones, for each episode."""
        weights: Weights = {_BACKBONE + name: parameter for name, parameter in self.backbone.named_parameters()}
        weights |= {_HEAD_WEIGHT: self.head.weight, _HEAD_BIAS: self.head.bias}
        weights = {name: weight for name, weight in weights.items() if weight.requires_grad == trained}
        return for_each({name: w[:n_way] if name in _HEAD else w for name, w in weights.items()}, n_episodes)

    def _query_gradients(self, adapted: Weights, episode: EpisodeBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss (1,) of one episode's queries, and its gradients with respect to the adapted weights."""
        trained = leaves(adapted)
        weights = trained | self._frozen(1, episode.n_way)
        if self.query_statistics:
            logits = self._logits(weights, episode.query_x, episode.query_x.shape[1])
        else:  # the support set goes first: the gradient goes through its statistics too
            n_support = episode.support_x.shape[1]
            both = torch.cat([episode.support_x, episode.query_x], dim=1)
            logits = self._logits(weights, both, n_support)[:, n_support:]
        loss = self.loss(logits, episode)
        return loss.detach(), torch.autograd.grad(loss.sum(), list(trained.values()))

    def _statistics(self, weights: Weights, support_x: Tensor) -> Weights:
        """The statistics of each support set under its own weights, by the name of the backbone's buffer."""
        by_episode = []
        for i, items in enumerate(support_x):
            with recorded_statistics(self.backbone) as statistics:
                embed_under(self.backbone, _of_backbone(of_episode(weights, i)), items[None], len(items))
            by_episode.append(statistics())
        return {_BACKBONE + name: torch.stack([one[name] for one in by_episode]) for name in by_episode[0]}

    def _logits(self, weights: Weights, items: Tensor, n_reference: int | None) -> Tensor:
        """(B, I, N) of items (B, I, *item), each episode under its own weights."""
        features = embed_under(self.backbone, _of_backbone(weights), items, n_reference)
        with full_precision(features):
            return torch.baddbmm(weights[_HEAD_BIAS][:, None], features, weights[_HEAD_WEIGHT].transpose(1, 2))


def _of_backbone(weights: Weights) -> Weights:
    return {name.removeprefix(_BACKBONE): w for name, w in weights.items() if name.startswith(_BACKBONE)}
