"""A small network on top of a backbone, which is trained where the backbone is not.

Shapes: B items, D features of the backbone, W of the adapter.
"""

import math
from collections.abc import Iterable
from copy import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.backbones.contract import Backbone, Flatten, calibrate
from kshot.backbones.layers.conv_block import at_least_float32
from kshot.settings import STRICT

_LENGTH = math.sqrt(5)  # of features: their squared distance is then 10 times (1 - cosine), a scale that trains well


@settings(frozen=True, kw_only=True, config=STRICT)
class NoAdapter:
    name: Literal["none"] = "none"

    def build(self, backbone: Backbone) -> Backbone:
        return backbone


@settings(frozen=True, kw_only=True, config=STRICT)
class LinearAdapter:
    """A linear map to `width` features, orthogonal at first: it keeps distances, as far as it has the width."""

    name: Literal["linear"] = "linear"
    width: Annotated[int, Field(ge=1)] = 512

    def build(self, backbone: Backbone) -> Backbone:
        linear = nn.Linear(backbone.n_features, self.width)
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
        return WithAdapter(backbone, linear, self.width)


@settings(frozen=True, kw_only=True, config=STRICT)
class MLPAdapter:
    """A layer of `width` hidden units whose result is added to the features, and is 0 at first.

    The adapter of Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", 2021, without text.
    """

    name: Literal["mlp"] = "mlp"
    width: Annotated[int, Field(ge=1)] = 256

    def build(self, backbone: Backbone) -> Backbone:
        layers = (nn.Linear(backbone.n_features, self.width), nn.ReLU(), nn.Linear(self.width, backbone.n_features))
        return WithAdapter(backbone, _Added(*layers), backbone.n_features)


@settings(frozen=True, kw_only=True, config=STRICT)
class LoRAAdapter:
    """A linear map of low rank whose result is added to the features, and is 0 at first.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, on the features instead of inside the layers.
    """

    name: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1)] = 64

    def build(self, backbone: Backbone) -> Backbone:
        down = nn.Linear(backbone.n_features, self.rank, bias=False)
        up = nn.Linear(self.rank, backbone.n_features, bias=False)
        return WithAdapter(backbone, _Added(down, up), backbone.n_features)


AdapterConfig = Annotated[NoAdapter | LinearAdapter | MLPAdapter | LoRAAdapter, Field(discriminator="name")]


class WithAdapter(Backbone):
    """The features of `base`, centred, of one length, adapted, and of one length again.

    `centre` (D,) is the mean feature of items of the training, see `set_centre`. Where nothing of `base` is trained,
    its features of each item are always the same, and `on_features` takes them instead of items.
    """

    centre: Tensor

    def __init__(self, base: Backbone, adapter: nn.Module, n_features: int) -> None:
        super().__init__()
        self.base: nn.Module = base
        self.adapter = adapter
        self.n_features = n_features
        self.recomputes = base.recomputes
        self.by_support = base.by_support
        self._bytes_of_adapter = 4 * (2 * base.n_features + n_features)
        self.bytes_per_item = base.bytes_per_item + self._bytes_of_adapter
        self.register_buffer("centre", torch.zeros(base.n_features))

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        features = F.normalize(self.base(items, n_reference) - self.centre, dim=1)
        return _LENGTH * F.normalize(at_least_float32(self.adapter(features)), dim=1)

    @torch.no_grad()
    def set_centre(self, batches: Iterable[Tensor]) -> None:
        """Set the mean feature, and the statistics that `base` is normalised by, from `batches` (B, *item)."""
        held = list(batches)
        calibrate(self.base, held)
        features = torch.cat([self.base(items, None) for items in held])
        self.centre.copy_(features.mean(0))

    def on_features(self) -> "WithAdapter":
        """The same for features (B, D) of `base`. The tensors of both are the same ones."""
        other = copy(self)
        other._modules = self._modules | {"base": Flatten()}
        other.bytes_per_item, other.each_alone, other.by_support = self._bytes_of_adapter, True, False
        return other


class _Added(nn.Module):
    """What its layers give is added to what they are given; the last one, a linear map, gives 0 at first."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        for parameter in layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layers(x)
        return x + added
