"""Any classification network of torchvision by its name, without its classifier."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import nn

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze, image_item, nearest_name
from kshot.backbones.layers.adopted import adopted_pictures
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError
from kshot.settings import STRICT

_CLASSIFIERS = ("fc", "classifier", "heads", "head")


@settings(frozen=True, kw_only=True, config=STRICT)
class TorchvisionConfig:
    """`model` as torchvision names it: resnet18, efficientnet_b0, vit_b_16. See `Pictures` for `input_size`."""

    name: Literal["torchvision"] = "torchvision"
    model: str = "resnet18"
    input_size: Annotated[int | None, Field(ge=8, le=1024)] = None
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item: ItemKind) -> Backbone:
        pictures = image_item("torchvision", item)
        network = _network(self.model, self.input_size or pictures.image_size)
        return freeze(adopted_pictures(network, pictures, self.input_size), self.freeze)


def _network(model: str, side: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise ConfigError(
            f"torchvision has no model {model!r}; needed one of its {len(known)}{nearest_name(model, known)}"
        )
    size = {"image_size": side} if model.startswith("vit") else {}
    network: nn.Module = models.get_model(model, weights=None, **size)
    classifier = next(name for name in _CLASSIFIERS if hasattr(network, name))
    setattr(network, classifier, nn.Identity())
    return network
