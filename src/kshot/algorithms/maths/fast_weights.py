"""Fast weights: those of each episode, how gradient descent moves them, and passes of a network under them.

Shapes: B episodes, I items of one episode, D features.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from kshot.algorithms.maths.losses import full_precision
from kshot.backbones.contract import EpisodeWise

Weights = dict[str, Tensor]
"""(B, *shape) by the parameter's name: the weights of each of B episodes."""

Rate = float | Weights
"""Of gradient descent: one for all weights, or for each by its name, of a shape that broadcasts to the weight's."""


def for_each(parameters: Weights, n_episodes: int) -> Weights:
    """The same weights for every episode, without a copy."""
    return {name: weight.expand(n_episodes, *weight.shape) for name, weight in parameters.items()}


def of_episode(weights: Weights, i: int) -> Weights:
    """Those of episode i, as weights of one episode."""
    return {name: weight[i : i + 1] for name, weight in weights.items()}


def descend(
    loss: Callable[[Weights], Tensor], weights: Weights, *, rate: Rate, n_steps: int, second_order: bool
) -> Weights:
    """Weights after `n_steps` of gradient descent on `loss`, the sum over the episodes.

    Runs in full precision. Differentiable with respect to `weights` where gradients are on; with `second_order` through
    the gradients too.
    """
    for _ in range(n_steps):
        weights = moved(*gradients_at(weights, loss, second_order=second_order), rate)
    return weights


def gradients_at(
    weights: Weights, loss: Callable[[Weights], Tensor], *, second_order: bool
) -> tuple[Weights, tuple[Tensor, ...]]:
    """The weights and, in their order, the gradients of `loss` there. One step of `descend` is `moved` of them."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), full_precision(next(iter(weights.values()))):
        if not differentiable:
            weights = leaves(weights)
        create_graph = differentiable and second_order
        return weights, torch.autograd.grad(loss(weights), list(weights.values()), create_graph=create_graph)


def moved(weights: Weights, gradients: Sequence[Tensor], rate: Rate) -> Weights:
    """The weights, each moved against its gradient by its rate. Differentiable with respect to the rates too."""
    pairs = zip(weights.items(), gradients, strict=True)
    if isinstance(rate, float):
        return {name: torch.add(weight, gradient, alpha=-rate) for (name, weight), gradient in pairs}
    return {name: torch.addcmul(weight, rate[name], gradient, value=-1) for (name, weight), gradient in pairs}


def embed_under(backbone: nn.Module, weights: Weights, items: Tensor, n_reference: int | None) -> Tensor:
    """Features (B, I, D) of items (B, I, *item), each episode under its own weights of the backbone.

    In one pass where the backbone can, else episode by episode.
    """
    if len(items) > 1 and n_reference is not None and isinstance(backbone, EpisodeWise):
        return backbone.forward_each(weights, items, n_reference)
    return forward_one_by_one(backbone, weights, items, n_reference)


def forward_one_by_one(backbone: nn.Module, weights: Weights, items: Tensor, n_reference: int | None) -> Tensor:
    """What an `EpisodeWise` backbone does in one pass, for any backbone."""
    features = [
        functional_call(backbone, {name: weight[i] for name, weight in weights.items()}, (episode, n_reference))
        for i, episode in enumerate(items)
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
