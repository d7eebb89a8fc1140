"""Any network of timm by its name, as it gives pooled features."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import nn

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze, image_item, nearest_name
from kshot.backbones.layers.adopted import adopted_pictures
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class TimmConfig:
    """`model` as timm names it, such as tf_efficientnet_lite0. See `Pictures` for `input_size`."""

    name: Literal["timm"] = "timm"
    model: str = "tf_efficientnet_lite0"
    input_size: Annotated[int | None, Field(ge=8, le=1024)] = None
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item: ItemKind) -> Backbone:
        pictures = image_item("timm", item)
        network = _network(self.model, self.input_size or pictures.image_size)
        return freeze(adopted_pictures(network, pictures, self.input_size), self.freeze)


def _network(model: str, side: int) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the backbone {model} is of timm, which is not installed; next: pip install 'kshot[timm]'"
        ) from error
    if not timm.is_model(model.partition(".")[0]):
        raise ConfigError(f"timm has no model {model!r}{nearest_name(model, timm.list_models())}")
    fixed = timm.get_pretrained_cfg(model, allow_unregistered=True)
    size: dict[str, Any] = {"img_size": side} if fixed is not None and fixed.fixed_input_size else {}
    network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **size)
    return network
