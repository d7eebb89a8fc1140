"""Weights of each episode: gradient descent on them, and passes under them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AdaptedWeights:
    """Fast weights of B episodes, (B, *shape) by the parameter's name, and the support items (B, S, *item)."""

    weights: Weights
    support_x: Tensor

    def one_by_one(self) -> Iterator["AdaptedWeights"]:
        for i, support_x in enumerate(self.support_x):
            yield AdaptedWeights(
                weights={name: weight[i : i + 1] for name, weight in self.weights.items()}, support_x=support_x[None]
            )


def forward_one_by_one(backbone: nn.Module, weights: Weights, images: Tensor, n_reference: int) -> Tensor:
    """What an `EpisodeWise` backbone does in one pass, for any backbone."""
    features = [
        functional_call(backbone, {name: weight[i] for name, weight in weights.items()}, (episode, n_reference))
        for i, episode in enumerate(images)
    ]
    return torch.stack(features)


def leaves(weights: Weights) -> Weights:
    """The same values as the start of a graph of their own."""
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}


def with_gradients(losses: Tensor, gradients: Sequence[Tensor], weights: Weights) -> Tensor:
    """Losses (B,) whose gradients with respect to `weights`, each (B, *shape), are given instead of derived."""
    given: Tensor = _WithGradients.apply(losses, gradients, *weights.values())
    return given


class _WithGradients(Function):
    @staticmethod
    def forward(ctx: Any, losses: Tensor, gradients: Sequence[Tensor], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, losses_bar: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(losses_bar.view(-1, *[1] * (one.ndim - 1)) * one for one in ctx.saved_tensors)
