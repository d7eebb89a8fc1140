"""Conv4: the four-block convolutional network of Vinyals et al., "Matching Networks", 2016, section 4.1."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.backbones.backbone import Backbone, ReferenceNorm, channels_last
from kshot.errors import ConfigError
from kshot.settings import STRICT

_N_BLOCKS = 4


@settings(frozen=True, kw_only=True, config=STRICT)
class Conv4Config:
    name: Literal["conv4"] = "conv4"
    width: Annotated[int, Field(ge=1)] = 64  # channels of every block

    def build(self, *, channels: int, image_size: int) -> "Conv4":
        return Conv4(self.width, channels=channels, image_size=image_size)


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 max-pooling.

    28x28 images give D = width features, 84x84 give 25 * width. The convolutions have no bias: the
    normalisation that follows would cancel it.
    """

    def __init__(self, width: int, *, channels: int, image_size: int) -> None:
        super().__init__()
        side = image_size // 2**_N_BLOCKS
        if side < 1:
            raise ConfigError(f"conv4 got images of {image_size} pixels; need at least {2**_N_BLOCKS}")
        self.n_features = width * side * side
        inputs = [channels] + [width] * (_N_BLOCKS - 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(n, width, 3, padding=1, bias=False) for n in inputs)
        self.norms = nn.ModuleList(ReferenceNorm(width) for _ in inputs)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, n_reference: int | None) -> Tensor:
        x = channels_last(images)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(F.max_pool2d(norm(convolution(x), n_reference), 2))  # same values, a quarter of the work
        return x.flatten(1)
