"""The optimiser of the outer loop, and the schedule of its learning rate.

All parameters are one vector of P numbers, each parameter in row order.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from kshot.errors import ConfigError
from kshot.settings import STRICT

_BETAS, _EPS = (0.9, 0.999), 1e-8
_SHOWN = 12  # layers that an error names

NonNegative = Annotated[float, Field(ge=0)]


@settings(frozen=True, kw_only=True, config=STRICT)
class _AnyOptimizer:
    """What every optimiser can be asked for.

    `clip_norm` is the largest norm of the gradient; a longer one is shortened to it. `layer_rates` multiply the
    learning rate of layers, named by the first parts of their names; the longest name counts. `ema` above 0 validates
    and keeps the moving average of the weights, with this part of the old average in the new one. Weight decay leaves
    biases and norms alone.
    """

    clip_norm: Annotated[float, Field(gt=0)] | None = None
    layer_rates: dict[str, NonNegative] = Field(default_factory=dict)
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


@settings(frozen=True, kw_only=True, config=STRICT)
class AdamConfig(_AnyOptimizer):
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015; decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    weight_decay: NonNegative = 0.0


@settings(frozen=True, kw_only=True, config=STRICT)
class AdamWConfig(_AnyOptimizer):
    """Adam with the decay apart: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019."""

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.01


@settings(frozen=True, kw_only=True, config=STRICT)
class SGDConfig(_AnyOptimizer):
    """Gradient descent with momentum; decay is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4


OptimizerConfig = Annotated[AdamConfig | AdamWConfig | SGDConfig, Field(discriminator="name")]


def cosine_decay(step: int, n_steps: int) -> float:
    """What is left of the learning rate at `step` from 0, in 0..1. Loshchilov and Hutter, "SGDR", 2017, one cycle."""
    return 0.5 * (1 + math.cos(math.pi * step / n_steps))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of the tensors as one vector, each tensor in row order."""
    return torch.cat([tensor.flatten() for tensor in tensors])


class Optimizer:
    """Changes parameters in place by the gradients of a loss.

    Gradient and moments are one vector each, whose order is the parameters' rows whatever their strides, so a step is
    a few operations and not a few for each parameter. `rates` (P,) multiply the learning rate, where they are given.
    """

    def __init__(
        self, parameters: Iterable[Tensor], settings: OptimizerConfig | None = None, rates: Tensor | None = None
    ) -> None:
        self.parameters = list(parameters)
        self._settings = settings or AdamConfig()
        self._rates = rates
        like = torch.zeros_like(flat(self.parameters), requires_grad=False)
        self._rule: _Rule = _SGD(like, self._settings) if isinstance(self._settings, SGDConfig) else _Adam(like)
        self._decay = _decay(self.parameters, self._settings.weight_decay)
        self._average = flat(self.parameters).detach() if self._settings.ema else None
        self._n_averaged = torch.zeros((), device=like.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """`gradient` is `flat` of those by each parameter."""
        if self._settings.clip_norm is not None:
            gradient = gradient * (self._settings.clip_norm / torch.linalg.vector_norm(gradient)).clamp(max=1)
        apart = isinstance(self._settings, AdamWConfig)
        if self._decay is not None and not apart:
            gradient = gradient + self._decay * flat(self.parameters)
        change = torch.zeros_like(gradient)
        self._rule.add(change, gradient, learning_rate)
        if self._decay is not None and apart:
            change -= learning_rate * self._decay * flat(self.parameters)
        if self._rates is not None:
            change *= self._rates
        torch._foreach_add_(self.parameters, self._parts(change))
        if self._average is not None:
            self._n_averaged += 1
            kept = torch.clamp((1 + self._n_averaged) / (10 + self._n_averaged), max=self._settings.ema)
            self._average.lerp_(flat(self.parameters), 1 - kept)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are their moving average while the context is open; as they are without one."""
        if self._average is None:
            yield
            return
        latest = flat(self.parameters).detach()
        self._set(self._average)
        try:
            yield
        finally:
            self._set(latest)

    def state(self) -> dict[str, Tensor]:
        """What the next step needs beside the parameters."""
        averages = {} if self._average is None else {"average": self._average, "n_averaged": self._n_averaged}
        return self._rule.state() | averages

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def _set(self, vector: Tensor) -> None:
        torch._foreach_copy_(self.parameters, self._parts(vector))

    def _parts(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, [parameter.numel() for parameter in self.parameters])
        return [part.view_as(one) for part, one in zip(parts, self.parameters, strict=True)]


def layer_rates(names: Sequence[str], parameters: Sequence[Tensor], factors: Mapping[str, float]) -> Tensor | None:
    """(P,) the factor of each number's learning rate; None without factors.

    `names` are those of the parameters. Raises ConfigError for a layer that is not there.
    """
    if not factors:
        return None
    for layer in factors:
        if not any(_is_below(name, layer) for name in names):
            known = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ConfigError(
                f"optimizer.layer_rates names {layer!r}, and no layer that is trained is called so; needed the first "
                f"parts of names such as {', '.join([*known, *names][:_SHOWN])}"
            )
    found = []
    for name, parameter in zip(names, parameters, strict=True):
        above = [layer for layer in factors if _is_below(name, layer)]
        found.append(torch.full_like(parameter, factors[max(above, key=len)] if above else 1.0, requires_grad=False))
    return flat(found)


class _Rule(Protocol):
    def add(self, change: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Add what the rule does for this gradient to `change`."""
        ...

    def state(self) -> dict[str, Tensor]: ...


class _Adam:
    """By torch's own function. torch.optim.Adam does the same, but imports torch's compiler at its first use: 150 MB
    and a second in every process."""

    def __init__(self, like: Tensor) -> None:
        self._moment, self._square = torch.zeros_like(like), torch.zeros_like(like)
        self._step = torch.zeros(())

    def add(self, change: Tensor, gradient: Tensor, learning_rate: float) -> None:
        adam(
            [change],
            [gradient],
            [self._moment],
            [self._square],
            [],
            [self._step],
            foreach=False,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=_EPS,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        return {"exp_avg": self._moment, "exp_avg_sq": self._square, "step": self._step}


class _SGD:
    def __init__(self, like: Tensor, settings: SGDConfig) -> None:
        self._momentum, self._nesterov = settings.momentum, settings.nesterov and settings.momentum > 0
        self._velocity = torch.zeros_like(like)

    def add(self, change: Tensor, gradient: Tensor, learning_rate: float) -> None:
        sgd(
            [change],
            [gradient],
            [self._velocity],
            foreach=False,
            weight_decay=0.0,
            momentum=self._momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=self._nesterov,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        return {"momentum": self._velocity}


def _decay(parameters: Sequence[Tensor], weight_decay: float) -> Tensor | None:
    """(P,) the decay of each number: of matrices and kernels alone."""
    if not weight_decay:
        return None
    of_each = [torch.full_like(p, weight_decay if p.dim() > 1 else 0.0, requires_grad=False) for p in parameters]
    return flat(of_each)


def _is_below(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
