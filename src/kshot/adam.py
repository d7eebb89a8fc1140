"""The optimiser of the outer loop, and the schedule of its learning rate."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

_BETAS, _EPS = (0.9, 0.999), 1e-8


def cosine_decay(step: int, n_steps: int) -> float:
    """What is left of the learning rate at `step` from 0, in 0..1. Loshchilov and Hutter, "SGDR", 2017, one cycle."""
    return 0.5 * (1 + math.cos(math.pi * step / n_steps))


class Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, by torch's own function.

    torch.optim.Adam does the same, but imports torch's compiler at its first use: 150 MB and a second in
    every process. Not the fused kernel: it takes parameter, gradient and moments for memory of one order,
    and a channels-last weight and its restored moments are not.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self._moments = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._steps = [torch.zeros(()) for _ in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Change the parameters in place; `gradients` in their order."""
        adam(
            self.parameters,
            list(gradients),
            self._moments,
            self._squares,
            [],
            self._steps,
            foreach=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=_EPS,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """What the next step needs beside the parameters, by number of the parameter and name."""
        return {f"{i}.{name}": tensor for name, tensors in self._named().items() for i, tensor in enumerate(tensors)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensors in self._named().items():
            for i, tensor in enumerate(tensors):
                tensor.copy_(state[f"{i}.{name}"])

    def _named(self) -> dict[str, list[Tensor]]:
        return {"exp_avg": self._moments, "exp_avg_sq": self._squares, "step": self._steps}
