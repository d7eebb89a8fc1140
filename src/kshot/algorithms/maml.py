"""Model-Agnostic Meta-Learning, second and first order.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from copy import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kshot.algorithms.learner import NON_TRANSDUCTIVE, TRANSDUCTIVE, Learner, cross_entropy
from kshot.episode import EpisodeBatch, Support
from kshot.errors import EpisodeError
from kshot.settings import STRICT

Weights = dict[str, Tensor]
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


@dataclass(frozen=True, kw_only=True)
class AdaptedWeights:
    """Fast weights of each of B episodes, and the support items (B, S, *item) that made them."""

    weights: tuple[Weights, ...]
    support_x: Tensor


class MAML(Learner[AdaptedWeights]):
    """Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
    algorithm 2; with `first_order`, section 5.2.

    The head has one row for each class of a training episode; an episode of fewer classes uses the
    first rows. The paper normalises queries by the statistics of all queries, which is transductive:
    `normalization_modes` scores the same weights also with the statistics of the support set, where a
    prediction depends on no other query.
    """

    needs_population_statistics = False

    def __init__(self, backbone: nn.Module, config: MAMLConfig, *, n_features: int, n_way: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(n_features, n_way)
        self.config = config
        self.max_way = n_way
        self.query_statistics = config.query_statistics

    @property
    def transductive(self) -> bool:
        return self.query_statistics

    def adapt(self, support: Support) -> AdaptedWeights:
        return self._adapt(support, self.config.eval_inner_steps)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        logits = [
            self._query_logits(weights, support, query)
            for weights, support, query in zip(adapted.weights, adapted.support_x, query_x, strict=True)
        ]
        return torch.stack(logits)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        adapted = self._adapt(episodes.support, self.config.inner_steps)
        return cross_entropy(self.classify(adapted, episodes.query_x), episodes.query_y)

    def normalization_modes(self) -> dict[str, Learner[AdaptedWeights]]:
        with_queries, with_support = copy(self), copy(self)
        with_queries.query_statistics, with_support.query_statistics = True, False
        return {TRANSDUCTIVE: with_queries, NON_TRANSDUCTIVE: with_support}

    def _adapt(self, support: Support, n_steps: int) -> AdaptedWeights:
        if support.n_way > self.head.out_features:
            raise EpisodeError(
                f"found {support.n_way} classes; this MAML head was trained for {self.head.out_features}; "
                f"next: train with task_pool.meta_train.shape.n_way: {support.n_way}, or use protonet"
            )
        weights = tuple(
            self._inner_loop(x, y, support.n_way, n_steps) for x, y in zip(support.x, support.y, strict=True)
        )
        return AdaptedWeights(weights=weights, support_x=support.x)

    def _inner_loop(self, support_x: Tensor, support_y: Tensor, n_way: int, n_steps: int) -> Weights:
        """Fast weights after `n_steps` of gradient descent; differentiable where gradients are on."""
        differentiable = torch.is_grad_enabled()
        weights = self._initial_weights(n_way)
        for _ in range(n_steps):
            with torch.enable_grad():
                if not differentiable:
                    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
                loss = F.cross_entropy(self._logits(weights, support_x, len(support_x)), support_y)
                gradients = torch.autograd.grad(
                    loss, list(weights.values()), create_graph=differentiable and not self.config.first_order
                )
            weights = {
                name: weight - self.config.inner_lr * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        return weights

    def _initial_weights(self, n_way: int) -> Weights:
        weights = {_BACKBONE + name: parameter for name, parameter in self.backbone.named_parameters()}
        return weights | {_HEAD_WEIGHT: self.head.weight[:n_way], _HEAD_BIAS: self.head.bias[:n_way]}

    def _query_logits(self, weights: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        """(Q, N). The support set goes first where its statistics normalise the queries."""
        if self.query_statistics:
            return self._logits(weights, query_x, len(query_x))
        images = torch.cat([support_x, query_x])
        return self._logits(weights, images, len(support_x))[len(support_x) :]

    def _logits(self, weights: Weights, images: Tensor, n_reference: int) -> Tensor:
        """(I, N) of images (I, C, H, W) under `weights`."""
        backbone = {name.removeprefix(_BACKBONE): w for name, w in weights.items() if name.startswith(_BACKBONE)}
        features = functional_call(self.backbone, backbone, (images, n_reference))
        return F.linear(features, weights[_HEAD_WEIGHT], weights[_HEAD_BIAS])
