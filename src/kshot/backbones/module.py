"""A user's own network: what a function in a file of theirs returns."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import nn

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze
from kshot.backbones.layers.adopted import Adopted
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class ModuleConfig:
    """`make` is FILE.py:FUNCTION, which takes the shape of an item, (C, H, W) of a picture, and returns a network.

    The network maps items (B, *shape) to features (B, D) or to maps (B, C, H, W).
    """

    name: Literal["module"] = "module"
    make: Annotated[str, Field(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")]
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item: ItemKind) -> Backbone:
        example = item.tensor(torch.from_numpy(item.example(1)))
        network = _made(self.make, tuple(example.shape[1:]))
        return freeze(Adopted(network, example), self.freeze)


def _made(make: str, shape: tuple[int, ...]) -> nn.Module:
    path, _, function = make.rpartition(":")
    if not Path(path).is_file():
        raise ConfigError(f"backbone.make names {path}, which is not there; needed a file of yours in this folder")
    found = importlib.util.spec_from_file_location(Path(path).stem, path)
    if found is None or found.loader is None:
        raise ConfigError(f"{path} cannot be loaded; needed a Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"{path} has no function {function!r}; needed one that takes the shape of an item")
    network = getattr(module, function)(shape)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{make} returned {type(network).__name__}; needed a torch.nn.Module")
    return network
