"""What a trained learner has to beat, scored on the same episodes: raw items, no training, ordinary training."""

from pathlib import Path
from typing import Any

import torch

from kshot.algorithms.learner import Learner
from kshot.algorithms.linear_probe import LinearProbe
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten, calibrate
from kshot.data.batches import TrainItems
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.model import ModelConfig, build_backbone, load_model

PIXELS, UNTRAINED, PRETRAINED = "pixel nearest centroid", "untrained backbone, prototypes", "pretrained, linear head"
_BATCH = 128  # items, to set population statistics by


def untrained_baselines(
    config: ModelConfig, dataset: PackedDataset, gather: Gather, *, seed: int
) -> dict[str, Learner[Any]]:
    """The baselines that need no training, by name, ready to be scored.

    Where the backbone has pretrained weights, nobody asks what it is without them.
    """
    if config.backbone.weights:
        return {PIXELS: ProtoNet(Flatten())}
    batches = [gather(items) for items in TrainItems.of(dataset, batch_size=_BATCH, seed=seed).calibration_batches()]
    untrained = build_backbone(config, init_seed=seed).to(batches[0].device).eval()
    calibrate(untrained, batches)
    return {PIXELS: ProtoNet(Flatten()), UNTRAINED: ProtoNet(untrained)}


def pretrained_baseline(folder: Path, device: torch.device) -> dict[str, Learner[Any]]:
    """A linear head on the backbone that the pretrain stage left in `folder`; nothing where it left none."""
    if not folder.exists():
        return {}
    return {PRETRAINED: LinearProbe(load_model(folder).learner.backbone).to(device)}
