"""Backbones: images (B, C, H, W) -> features (B, D). To add one: a file here and a name in this union."""

from kshot.backbones.conv4 import Conv4Config

BackboneConfig = Conv4Config

__all__ = ["BackboneConfig", "Conv4Config"]
