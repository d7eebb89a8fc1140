"""Normalisation with its statistics made explicit: of a batch, of a task and an item together, or of the item alone.

Shapes: B images of one episode (its support, its query or both), R reference images, C,H,W, D features.
"""

from contextvars import ContextVar
from math import gcd
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.backbones.layers.conv_block import at_least_float32

NormName = Annotated[Literal["batch", "task", "group", "layer"], Field(exclude_if=lambda name: name == "batch")]
"""Which of them a backbone has; batch normalisation is not written down."""

_GROUPS = 32  # of channels, as many as divide their number: Wu and He's


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
            seen.setdefault(self, []).append({"population_mean": mean, "population_var": var})
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


class TaskNorm(nn.Module):
    """Each item is normalised by a mixture of its own statistics and those of its task's support set.

    Bronskill, Gordon, Requeima, Nowozin and Turner, "TaskNorm: Rethinking Batch Normalization for Meta-Learning", 2020,
    section 4: TaskNorm-I, whose item statistics are those of each channel alone. The share of the support set is a
    sigmoid of `slope` times its size plus `offset`, which are learned and start from 0, as in the authors' code.

    The first `n_reference` items are the support set. Without them the population statistics stand in its place, with
    the size of the batches that they are from: those of a support set where `recorded_statistics` recorded one.
    """

    def __init__(self, n_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.frozen = False
        """Always the population statistics, which then nothing changes."""
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))
        self.slope, self.offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.population_mean: Tensor
        self.population_var: Tensor
        self.population_size: Tensor
        self.register_buffer("population_mean", torch.zeros(n_channels))
        self.register_buffer("population_var", torch.ones(n_channels))
        self.register_buffer("population_size", torch.ones(()))

    def forward(self, x: Tensor, n_reference: int | None) -> Tensor:
        exact = at_least_float32(x)
        seen = RECORDING.get()
        if seen is not None and not self.frozen:
            var, mean = torch.var_mean(exact.detach(), dim=all_but_channels(x), correction=0)
            size = torch.full_like(self.population_size, len(x))
            seen.setdefault(self, []).append({"population_mean": mean, "population_var": var, "population_size": size})
        size = self.population_size
        mean, var = self.population_mean, self.population_var
        if n_reference is not None and not self.frozen:
            size = torch.full_like(size, n_reference)
            var, mean = torch.var_mean(exact[:n_reference], dim=all_but_channels(x), correction=0)
        share = torch.sigmoid(self.slope * size + self.offset)
        own_var, own_mean = torch.var_mean(exact, dim=(2, 3), correction=0)
        mixed_mean = torch.lerp(own_mean, mean, share)
        of_task, of_item = var + (mean - mixed_mean).square(), own_var + (own_mean - mixed_mean).square()
        scale = self.weight * (torch.lerp(of_item, of_task, share) + self.eps).rsqrt()
        shift = self.bias - mixed_mean * scale  # (B, C)
        return x * scale.to(x.dtype)[:, :, None, None] + shift.to(x.dtype)[:, :, None, None]


class ItemNorm(nn.Module):
    """Each item is normalised by its own statistics, in groups of channels, and no other item has a say.

    Wu and He, "Group Normalization", 2018, equations 1 to 7. With one group it is the layer normalisation of Ba, Kiros
    and Hinton, 2016, as Wu and He have it for maps: one scale and shift per channel.
    """

    def __init__(self, n_channels: int, n_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: Tensor, n_reference: int | None) -> Tensor:
        normalised = F.group_norm(at_least_float32(x), self.n_groups, self.weight, self.bias, self.eps)
        return normalised.to(x.dtype)

    def extra_repr(self) -> str:
        return f"n_groups={self.n_groups}"


KeepsStatistics = ReferenceNorm | TaskNorm
Norm = KeepsStatistics | ItemNorm


def build_norm(name: NormName, n_channels: int) -> Norm:
    match name:
        case "batch":
            return ReferenceNorm(n_channels)
        case "task":
            return TaskNorm(n_channels)
        case "group":
            return ItemNorm(n_channels, gcd(_GROUPS, n_channels))
        case "layer":
            return ItemNorm(n_channels, 1)


RECORDING: ContextVar[dict[KeepsStatistics, list[dict[str, Tensor]]] | None] = ContextVar("recording", default=None)
"""While statistics are recorded: those of everything that entered each norm, by the names of its buffers. Each thread
has its own."""


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
