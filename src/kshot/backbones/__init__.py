"""Backbones: items (B, *item) -> features (B, D). To add one: a file here and a name in this union."""

from typing import Annotated

from pydantic import Field

from kshot.backbones.conv4 import Conv4Config
from kshot.backbones.mlp import MLPConfig

BackboneConfig = Annotated[Conv4Config | MLPConfig, Field(discriminator="name")]

__all__ = ["BackboneConfig", "Conv4Config", "MLPConfig"]
