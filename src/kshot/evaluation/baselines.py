"""What a trained learner has to beat, scored on the same episodes: raw items, no training, ordinary training."""

from pathlib import Path
from typing import Any

import torch

from kshot.algorithms.answering import by_support
from kshot.algorithms.lda import LDA, LDAConfig
from kshot.algorithms.learner import Learner
from kshot.algorithms.linear_probe import LinearProbe
from kshot.algorithms.logistic import Logistic, LogisticConfig
from kshot.algorithms.protonet import ProtoNet
from kshot.algorithms.ridge import Ridge, RidgeConfig
from kshot.algorithms.simpleshot import SimpleShot
from kshot.backbones.contract import Backbone, Flatten, calibrate
from kshot.data.batches import TrainItems
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.evaluation.features import is_head
from kshot.model import ModelConfig, build_backbone, load_model

PIXELS, UNTRAINED = "pixel nearest centroid", "untrained backbone, prototypes"
PROTOTYPES, SIMPLESHOT = "pretrained, prototypes", "pretrained, simpleshot"
LINEAR_HEAD, RIDGE = "pretrained, linear head", "pretrained, ridge"
LOGISTIC, LDA_HEAD = "pretrained, logistic", "pretrained, lda"
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
    return {PIXELS: ProtoNet(Flatten()), UNTRAINED: by_support(ProtoNet(untrained))}


def pretrained_baselines(
    folder: Path, beside: Learner[Any], dataset: PackedDataset, gather: Gather, *, seed: int
) -> dict[str, Learner[Any]]:
    """Heads that need no training, by name, on the backbone that the pretrain stage left in `folder`.

    Nothing where it left none. `beside` a learner that is a head itself stand the other kinds of head.
    """
    if not folder.exists():
        return {}
    batches = [gather(items) for items in TrainItems.of(dataset, batch_size=_BATCH, seed=seed).calibration_batches()]
    backbone = load_model(folder).learner.backbone.to(batches[0].device)
    assert isinstance(backbone, Backbone)
    simpleshot = SimpleShot(backbone, torch.zeros(backbone.n_features, device=batches[0].device))
    simpleshot.set_centre(batches)
    heads: dict[str, Learner[Any]] = {
        PROTOTYPES: ProtoNet(backbone),
        SIMPLESHOT: simpleshot,
        LINEAR_HEAD: LinearProbe(backbone),
        RIDGE: Ridge(backbone, RidgeConfig()),
        LOGISTIC: Logistic(backbone, LogisticConfig()),
        LDA_HEAD: LDA(backbone, LDAConfig()),
    }
    own = type(beside) if is_head(beside) else None
    return {name: by_support(head) for name, head in heads.items() if type(head) is not own}
