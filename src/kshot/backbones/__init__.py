"""Backbones: items (B, *item) -> features (B, D). To add one: a file here and a name in this union."""

from typing import Annotated

from pydantic import Field

from kshot.backbones.conv4 import Conv4Config
from kshot.backbones.mlp import MLPConfig
from kshot.backbones.module import ModuleConfig
from kshot.backbones.resnet12 import ResNet12Config
from kshot.backbones.timm import TimmConfig
from kshot.backbones.torchvision import TorchvisionConfig

BackboneConfig = Annotated[
    Conv4Config | ResNet12Config | TorchvisionConfig | TimmConfig | ModuleConfig | MLPConfig,
    Field(discriminator="name"),
]

__all__ = [
    "BackboneConfig",
    "Conv4Config",
    "MLPConfig",
    "ModuleConfig",
    "ResNet12Config",
    "TimmConfig",
    "TorchvisionConfig",
]
