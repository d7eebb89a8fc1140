"""The optimiser of the outer loop, and the schedule of its learning rate."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

_BETAS, _EPS = (0.9, 0.999), 1e-8


def cosine_decay(step: int, n_steps: int) -> float:
    """What is left of the learning rate at `step` from 0, in 0..1. Loshchilov and Hutter, "SGDR", 2017, one cycle."""
    return 0.5 * (1 + math.cos(math.pi * step / n_steps))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of the tensors as one vector, each tensor in row order."""
    return torch.cat([tensor.flatten() for tensor in tensors])


class Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, by torch's own function.

    torch.optim.Adam does the same, but imports torch's compiler at its first use: 150 MB and a second in
    every process. Gradient and moments are one vector each, whose order is the parameters' rows whatever
    their strides, so a step is a few operations and not a few for each parameter.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self._moment = torch.zeros_like(flat(self.parameters), requires_grad=False)
        self._square = torch.zeros_like(self._moment)
        self._step = torch.zeros(())

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Change the parameters in place; `gradient` is `flat` of those by each parameter."""
        change = torch.zeros_like(gradient)
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
        parts = torch.split(change, [parameter.numel() for parameter in self.parameters])
        torch._foreach_add_(
            self.parameters, [part.view_as(one) for part, one in zip(parts, self.parameters, strict=True)]
        )

    def state(self) -> dict[str, Tensor]:
        """What the next step needs beside the parameters."""
        return {"exp_avg": self._moment, "exp_avg_sq": self._square, "step": self._step}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
