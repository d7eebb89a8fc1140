"""Model-Agnostic Meta-Learning, second and first order.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from copy import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import NON_TRANSDUCTIVE, TRANSDUCTIVE, Learner
from kshot.algorithms.maths.fast_weights import AdaptedWeights, Weights, forward_one_by_one, leaves, with_gradients
from kshot.algorithms.maths.heads import check_max_way
from kshot.algorithms.maths.losses import cross_entropy, full_precision
from kshot.backbones.contract import EpisodeWise
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_HEAD_WEIGHT, _HEAD_BIAS, _BACKBONE = "head.weight", "head.bias", "backbone."


@settings(frozen=True, kw_only=True, config=STRICT)
class MAMLConfig:
    name: Literal["maml"] = "maml"
    inner_lr: Annotated[float, Field(gt=0)] = 0.4
    inner_steps: Annotated[int, Field(ge=1)] = 1
    eval_inner_steps: Annotated[int, Field(ge=1)] = 10
    first_order: bool = False
    query_statistics: bool = True  # in training, normalise the queries by the queries (transductive)

    def build(self, backbone: nn.Module, *, n_features: int, train_way: int) -> "MAML":
        return MAML(backbone, self, n_features=n_features, n_way=train_way)


class MAML(Learner[AdaptedWeights]):
    """Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
    algorithm 2; with `first_order`, section 5.2.

    The head has one row for each class of a training episode; an episode of fewer classes uses the
    first rows. The paper normalises queries by the statistics of all queries, which is transductive:
    `normalization_modes` scores the same weights also with the statistics of the support set, where a
    prediction depends on no other query.

    The inner loop runs a few episodes side by side where the backbone can (`EpisodeWise`), else one by
    one. The query pass is differentiated at the adapted weights and its graph dropped, episode by episode;
    its gradient then goes back through the inner loop alone. By the chain rule that is the meta-gradient.
    """

    needs_population_statistics = False
    episodes_at_once = 4
    inner_steps: int

    def __init__(self, backbone: nn.Module, config: MAMLConfig, *, n_features: int, n_way: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(n_features, n_way)
        self.config = config
        self.max_way = n_way
        self.inner_steps = config.eval_inner_steps
        self.query_statistics = config.query_statistics

    @property
    def transductive(self) -> bool:
        return self.query_statistics

    def adapt(self, support: Support) -> AdaptedWeights:
        return self._inner_loop(support, self.inner_steps)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        logits = [
            self._query_logits(episode, query[None])
            for episode, query in zip(adapted.one_by_one(), query_x, strict=True)
        ]
        return torch.cat(logits)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        adapted = self._inner_loop(episodes.support, self.config.inner_steps)
        losses = []
        by_weight = [torch.empty_like(weight) for weight in adapted.weights.values()]  # torch.cat loses their strides
        for i, (one, episode) in enumerate(zip(adapted.one_by_one(), episodes.one_by_one(), strict=True)):
            loss, gradients = self._query_gradients(one, episode)
            losses.append(loss)
            for of_all, gradient in zip(by_weight, gradients, strict=True):
                of_all[i : i + 1] = gradient
        return with_gradients(torch.cat(losses), by_weight, adapted.weights)

    def normalization_modes(self) -> dict[str, Learner[AdaptedWeights]]:
        with_queries, with_support = copy(self), copy(self)
        with_queries.query_statistics, with_support.query_statistics = True, False
        return {TRANSDUCTIVE: with_queries, NON_TRANSDUCTIVE: with_support}

    def with_inner_steps(self, n_steps: int) -> Learner[AdaptedWeights]:
        other = copy(self)
        other.inner_steps = n_steps
        return other

    def _inner_loop(self, support: Support, n_steps: int) -> AdaptedWeights:
        """Fast weights after `n_steps` of gradient descent; differentiable where gradients are on."""
        check_max_way("MAML", support.n_way, self.head.out_features)
        differentiable = torch.is_grad_enabled()
        second_order = differentiable and not self.config.first_order
        weights = self._initial_weights(len(support.x), support.n_way)
        for _ in range(n_steps):
            with torch.enable_grad(), full_precision(support.x):
                if not differentiable:
                    weights = leaves(weights)
                loss = cross_entropy(self._logits(weights, support.x, support.x.shape[1]), support.y).sum()
                gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order)
            weights = {
                name: torch.add(weight, gradient, alpha=-self.config.inner_lr)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        return AdaptedWeights(weights=weights, support_x=support.x)

    def _initial_weights(self, n_episodes: int, n_way: int) -> Weights:
        weights: Weights = {_BACKBONE + name: parameter for name, parameter in self.backbone.named_parameters()}
        weights |= {_HEAD_WEIGHT: self.head.weight[:n_way], _HEAD_BIAS: self.head.bias[:n_way]}
        return {name: weight.expand(n_episodes, *weight.shape) for name, weight in weights.items()}

    def _query_gradients(self, adapted: AdaptedWeights, episode: EpisodeBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss (1,) of one episode's queries, and its gradients with respect to the adapted weights."""
        weights = leaves(adapted.weights)
        logits = self._query_logits(AdaptedWeights(weights=weights, support_x=adapted.support_x), episode.query_x)
        loss = cross_entropy(logits, episode.query_y)
        return loss.detach(), torch.autograd.grad(loss.sum(), list(weights.values()))

    def _query_logits(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        """(B, Q, N). The support set goes first where its statistics normalise the queries."""
        if self.query_statistics:
            return self._logits(adapted.weights, query_x, query_x.shape[1])
        n_support = adapted.support_x.shape[1]
        return self._logits(adapted.weights, torch.cat([adapted.support_x, query_x], dim=1), n_support)[:, n_support:]

    def _logits(self, weights: Weights, images: Tensor, n_reference: int) -> Tensor:
        """(B, I, N) of images (B, I, C, H, W), each episode under its own weights."""
        backbone = {name.removeprefix(_BACKBONE): w for name, w in weights.items() if name.startswith(_BACKBONE)}
        if len(images) > 1 and isinstance(self.backbone, EpisodeWise):
            features = self.backbone.forward_each(backbone, images, n_reference)
        else:
            features = forward_one_by_one(self.backbone, backbone, images, n_reference)
        with full_precision(features):
            return torch.baddbmm(weights[_HEAD_BIAS][:, None], features, weights[_HEAD_WEIGHT].transpose(1, 2))
