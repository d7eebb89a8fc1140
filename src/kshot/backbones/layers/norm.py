"""Batch normalisation with its statistics made explicit.

Shapes: B images of one episode (its support, its query or both), R reference images, C,H,W, D features.
"""

from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.backbones.layers.conv_block import at_least_float32


class ReferenceNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) that keeps no running average.

    A running average would depend on the order of episodes and on how they are sharded over processes.
    The population statistics are computed when they are needed, over given batches, as proposed by Wu and
    Johnson, "Rethinking 'Batch' in BatchNorm", 2021; but the variance is the mean of the batches' own, as a
    running average has it, without the variance between batches.
    """

    def __init__(self, n_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.frozen = False
        """Always the population statistics, which then nothing changes: those of a pretrained network that stays."""
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))
        self.population_mean: Tensor
        self.population_var: Tensor
        self.register_buffer("population_mean", torch.zeros(n_channels))
        self.register_buffer("population_var", torch.ones(n_channels))

    @property
    def is_recorded(self) -> bool:
        """Whether statistics are recorded now: what normalises by other means must then pass its items through here."""
        return RECORDING.get() is not None and not self.frozen

    def forward(self, x: Tensor, n_reference: int | None) -> Tensor:
        seen = RECORDING.get()
        if seen is not None and not self.frozen:
            var, mean = torch.var_mean(at_least_float32(x.detach()), dim=all_but_channels(x), correction=0)
            seen.setdefault(self, []).append((mean, var))
        if n_reference is None or self.frozen:
            return F.batch_norm(
                x, self.population_mean, self.population_var, self.weight, self.bias, False, 0, self.eps
            )
        if n_reference == len(x):
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)
        var, mean = torch.var_mean(at_least_float32(x[:n_reference]), dim=all_but_channels(x), correction=0)
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        of_channel = (-1, *[1] * (x.dim() - 2))
        return x * scale.to(x.dtype).view(of_channel) + shift.to(x.dtype).view(of_channel)

    def population_affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,) that the population statistics amount to."""
        scale = self.weight * (self.population_var + self.eps).rsqrt()
        return scale, self.bias - self.population_mean * scale


RECORDING: ContextVar[dict[ReferenceNorm, list[tuple[Tensor, Tensor]]] | None] = ContextVar("recording", default=None)
"""While statistics are recorded: mean and variance of everything that entered each norm. Each thread has its own."""


def all_but_channels(x: Tensor) -> list[int]:
    """The dimensions of x (B, C, ...) that statistics of a channel run over."""
    return [dim for dim in range(x.dim()) if dim != 1]


def channels_last(images: Tensor) -> Tensor:
    """The same images (B, C, H, W) with strides that are channels-last also where C = 1.

    With one channel the two layouts are the same memory and torch keeps either strides; convolutions
    choose their kernels by the strides. A program that is exported has its own layout: there the images stay.
    """
    if torch.compiler.is_exporting():
        return images
    n, c, h, w = images.shape
    return images.contiguous(memory_format=torch.channels_last).as_strided((n, c, h, w), (h * w * c, 1, w * c, c))
