"""ResNet-12: four residual blocks of three convolutions, the usual backbone of few-shot papers since 2018.

Shapes: B images, C channels, D features.
"""

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze, image_item, noise_of
from kshot.backbones.layers.conv_block import at_least_float32
from kshot.backbones.layers.norm import NormName, build_norm, channels_last
from kshot.backbones.layers.recompute import recomputed
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError
from kshot.settings import STRICT

_SLOPE = 0.1  # of the leaky ReLU
_SMALLEST = 16  # pixels: four poolings
_DROPBLOCKS = 2  # the last blocks have it; earlier ones only dropout of the same rate, as in the paper's code


@settings(frozen=True, kw_only=True, config=STRICT)
class ResNet12Config:
    """`widths` are the channels of the blocks; 64, 128, 256, 512 is the narrow one of the literature."""

    name: Literal["resnet12"] = "resnet12"
    widths: tuple[int, int, int, int] = (64, 160, 320, 640)
    pooling: Literal["mean", "none"] = "mean"
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of DropBlock, in ordinary training
    drop_block: Annotated[int, Field(ge=1)] = 5  # pixels of a block on a side
    norm: NormName = "batch"
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item: ItemKind) -> Backbone:
        pictures = image_item("resnet12", item)
        network = ResNet12(
            self.widths,
            channels=pictures.channels,
            image_size=pictures.image_size,
            pooling=self.pooling,
            drop_rate=self.drop_rate,
            drop_block=self.drop_block,
            norm=self.norm,
        )
        return freeze(network, self.freeze)


class ResNet12(Backbone):
    """Lee et al., "Meta-Learning with Differentiable Convex Optimization", 2019, section 4.1, with DropBlock.

    Each block is three 3x3 convolutions with normalisation and leaky ReLU of slope 0.1, a 1x1 convolution as the
    shortcut, and 2x2 max-pooling. The normalisation of the paper is that of batches. With mean pooling D is the last
    width; without, D is a map (`map_shape`).

    Deviations: the rate of DropBlock is constant and does not ramp up over the training; it is on in the batches of
    ordinary training alone, which name its draws (`contract.drawing`), and off in episodes and in evaluation.
    """

    recomputes = True

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        *,
        channels: int,
        image_size: int,
        pooling: Literal["mean", "none"] = "mean",
        drop_rate: float = 0.0,
        drop_block: int = 5,
        norm: NormName = "batch",
    ) -> None:
        super().__init__()
        if image_size < _SMALLEST:
            raise ConfigError(f"resnet12 got images of {image_size} pixels; need at least {_SMALLEST}")
        side = image_size // _SMALLEST
        self.pooling = pooling
        self.map_shape = (widths[-1], side, side) if pooling == "none" else None
        self.n_features = widths[-1] * (side * side if pooling == "none" else 1)
        self.bytes_per_item = 4 * 4 * widths[0] * image_size**2  # float32: input, output and two of the first block
        inputs = (channels, *widths[:-1])
        blocks = [
            ResidualBlock(a, b, drop_rate=drop_rate, drop_block=drop_block if n >= 4 - _DROPBLOCKS else 1, norm=norm)
            for n, (a, b) in enumerate(zip(inputs, widths, strict=True))
        ]
        self.blocks = nn.ModuleList(blocks)
        self.by_support = norm == "task"
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, n_reference: int | None) -> Tensor:
        x = channels_last(images)
        for block in self.blocks:
            x = recomputed(block, block, x, n_reference)
        return at_least_float32(x.mean((2, 3)) if self.pooling == "mean" else x.flatten(1))


class ResidualBlock(nn.Module):
    def __init__(self, n_inputs: int, width: int, *, drop_rate: float, drop_block: int, norm: NormName) -> None:
        super().__init__()
        self.drop_rate, self.drop_block = drop_rate, drop_block
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n, width, 3, padding=1, bias=False) for n in (n_inputs, width, width)
        )
        self.norms = nn.ModuleList(build_norm(norm, width) for _ in range(3))
        self.shortcut = nn.Conv2d(n_inputs, width, 1, bias=False)
        self.shortcut_norm = build_norm(norm, width)
        for convolution in (*self.convolutions, self.shortcut):
            weight = cast(Tensor, convolution.weight)
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor, n_reference: int | None) -> Tensor:
        y = x
        for n, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y), n_reference)
            y = y if n == len(self.norms) - 1 else F.leaky_relu(y, _SLOPE)
        y = F.leaky_relu(y + self.shortcut_norm(self.shortcut(x), n_reference), _SLOPE)
        return drop_blocks(F.max_pool2d(y, 2), self.drop_rate, self.drop_block)


def drop_blocks(x: Tensor, rate: float, side: int) -> Tensor:
    """x (B, C, H, W) with squares of `side` pixels set to 0 so that about `rate` of it is, and the rest enlarged.

    Ghiasi et al., "DropBlock", 2018, algorithm 1. Whole where no draws are named, see `contract.drawing`.
    """
    noise = noise_of(x) if rate > 0 else None
    if noise is None:
        return x
    side = min(side, *x.shape[2:])
    n_centres = (x.shape[2] - side + 1) * (x.shape[3] - side + 1)
    centre_rate = rate * x.shape[2] * x.shape[3] / (side**2 * n_centres)
    centres = (noise[:, :, : x.shape[2] - side + 1, : x.shape[3] - side + 1] < centre_rate).to(x.dtype)
    dropped = F.max_pool2d(F.pad(centres, (side - 1,) * 4), side, stride=1)
    kept = 1 - dropped
    return x * kept * (kept.numel() / kept.sum().clamp_min(1))
