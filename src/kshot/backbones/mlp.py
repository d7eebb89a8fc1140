"""MLP: a multi-layer perceptron on the numbers of an item, whatever its kind. For vectors first of all."""

from math import prod
from typing import Annotated, Literal, cast

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze
from kshot.backbones.layers.conv_block import at_least_float32
from kshot.backbones.layers.norm import ReferenceNorm
from kshot.data.items.contract import ItemKind
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class MLPConfig:
    name: Literal["mlp"] = "mlp"
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 64)  # of each layer
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item: ItemKind) -> "MLP":
        return freeze(MLP(prod(item.shape), self.widths), self.freeze)


class MLP(Backbone):
    """Layers of a linear map, batch normalisation and ReLU; the last layer gives D features. The maps have no bias."""

    def __init__(self, n_inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.n_features = widths[-1]
        self.bytes_per_item = 2 * 4 * max(n_inputs, *widths)  # float32, before and after the widest layer
        sizes = (n_inputs, *widths)
        self.maps = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(sizes, widths, strict=False))
        self.norms = nn.ModuleList(ReferenceNorm(width) for width in widths)

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        x = items.flatten(1)
        for linear, norm in cast("zip[tuple[nn.Linear, ReferenceNorm]]", zip(self.maps, self.norms, strict=True)):
            x = F.relu(norm(linear(x), n_reference))
        return at_least_float32(x)
