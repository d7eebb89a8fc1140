"""Conv4: the four-block convolutional network of Vinyals et al., "Matching Networks", 2016, section 4.1."""

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.func import functional_call

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze, image_item
from kshot.backbones.layers.block import conv_norm_relu_pool
from kshot.backbones.layers.conv_block import at_least_float32, conv_block
from kshot.backbones.layers.norm import Norm, NormName, build_norm, channels_last
from kshot.backbones.layers.recompute import recomputed
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError
from kshot.settings import STRICT

_N_BLOCKS = 4
Width = Annotated[int, Field(ge=1)]


@settings(frozen=True, kw_only=True, config=STRICT)
class Conv4Config:
    name: Literal["conv4"] = "conv4"
    width: Width | tuple[Width, Width, Width, Width] = 64  # channels of every block, or of each
    norm: NormName = "batch"
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item: ItemKind) -> "Conv4":
        pictures = image_item("conv4", item)
        network = Conv4(self.width, channels=pictures.channels, image_size=pictures.image_size, norm=self.norm)
        return freeze(network, self.freeze)


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, normalisation, ReLU and 2x2 max-pooling.

    28x28 images give D = width features, 84x84 give 25 * width. The convolutions have no bias: the
    normalisation that follows would cancel it. Widths of 96, 192, 384 and 512 are those of Bertinetto et al.,
    "Meta-learning with differentiable closed-form solvers", 2019, section 4.1. The normalisation of the papers is that
    of batches; with others the whole block is not one native kernel, but its convolutions are.
    """

    recomputes = True

    def __init__(
        self, width: int | tuple[int, int, int, int], *, channels: int, image_size: int, norm: NormName = "batch"
    ) -> None:
        super().__init__()
        widths = (width,) * _N_BLOCKS if isinstance(width, int) else width
        side = image_size // 2**_N_BLOCKS
        if side < 1:
            raise ConfigError(f"conv4 got images of {image_size} pixels; need at least {2**_N_BLOCKS}")
        self.map_shape = (widths[-1], side, side)
        sides = [image_size // 2**n for n in range(_N_BLOCKS)]
        largest = max(width * side**2 for width, side in zip(widths, sides, strict=True))
        self.bytes_per_item = 2 * 4 * largest  # float32, before and after a block's normalisation
        self.n_features = widths[-1] * side * side
        pairs = list(zip((channels, *widths), widths, strict=False))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(build_norm(norm, width) for width in widths)
        self.norm = norm
        self.by_support = norm == "task"
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, n_reference: int | None) -> Tensor:
        x = channels_last(images)
        for convolution, norm in self._layers():
            x = recomputed(self, conv_norm_relu_pool, x, convolution, norm, n_reference)
        return at_least_float32(x.flatten(1))

    def forward_each(self, weights: Mapping[str, Tensor], images: Tensor, n_reference: int) -> Tensor:
        """Features (T, B, D) of T episodes, each under weights of its own, side by side as groups of channels.

        weights: a tensor (T, *parameter.shape) for each parameter by its name; images (T, B, C, H, W). With another
        normalisation than that of batches, one episode after the other.
        """
        if self.norm != "batch":
            by_episode = [{name: weight[i] for name, weight in weights.items()} for i in range(len(images))]
            return torch.stack(
                [functional_call(self, of_one, (x, n_reference)) for of_one, x in zip(by_episode, images, strict=True)]
            )
        n_episodes, n_images = images.shape[:2]
        x = _side_by_side(images)
        for i, (_, norm) in enumerate(self._layers()):
            x = recomputed(
                self,
                conv_block,
                x,
                _stacked_kernels(weights[f"convolutions.{i}.weight"]),
                weights[f"norms.{i}.weight"].flatten(),
                weights[f"norms.{i}.bias"].flatten(),
                n_reference=n_reference,
                eps=norm.eps,
                groups=n_episodes,
            )
        return at_least_float32(x.reshape(n_images, n_episodes, self.n_features).transpose(0, 1))

    def _layers(self) -> "zip[tuple[nn.Conv2d, Norm]]":
        return cast("zip[tuple[nn.Conv2d, Norm]]", zip(self.convolutions, self.norms, strict=True))


def _side_by_side(images: Tensor) -> Tensor:
    """(T, B, C, H, W) -> (B, T*C, H, W), channels-last."""
    t, b, c, h, w = images.shape
    return channels_last(images.permute(1, 0, 2, 3, 4).reshape(b, t * c, h, w))


def _stacked_kernels(kernels: Tensor) -> Tensor:
    """(T, O, I, 3, 3) -> (T*O, I, 3, 3) with the strides of channels-last."""
    return kernels.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)
