"""What a meta-trained learner has to beat, scored on the same episodes: pixels, no training, ordinary training."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import Learner
from kshot.algorithms.linear_probe import LinearProbe
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Backbone, Flatten
from kshot.backbones.layers.norm import calibrate
from kshot.data.class_table import Int
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.model import ModelConfig, build_backbone
from kshot.runtime.lines import LiveLines
from kshot.seeding import generator
from kshot.training.optimizers import Adam, cosine_decay, flat

PIXELS, UNTRAINED, PRETRAINED = "pixel nearest centroid", "untrained backbone, prototypes", "pretrained, linear head"
_BATCH, _CALIBRATION_BATCHES = 128, 8
_LEARNING_RATE = 1e-3


def baselines(
    config: ModelConfig, dataset: PackedDataset, gather: Gather, *, seed: int, pretrain_steps: int, lines: LiveLines
) -> dict[str, Learner[Any]]:
    """Each baseline by its name, ready to be scored. The last is left out where `pretrain_steps` is 0."""
    learners = untrained_baselines(config, dataset, gather, seed=seed)
    if pretrain_steps:
        items, labels = _meta_train_items(dataset)
        batches = _calibration_batches(items, gather, seed)
        backbone = build_backbone(config, init_seed=seed).to(batches[0].device)
        pretrain(backbone, items, labels, gather, seed=seed, n_steps=pretrain_steps, lines=lines)
        calibrate(backbone.eval(), batches)
        learners[PRETRAINED] = LinearProbe(backbone)
    return learners


def untrained_baselines(
    config: ModelConfig, dataset: PackedDataset, gather: Gather, *, seed: int
) -> dict[str, Learner[Any]]:
    """The baselines that need no training, by name, ready to be scored."""
    items, _ = _meta_train_items(dataset)
    batches = _calibration_batches(items, gather, seed)
    untrained = build_backbone(config, init_seed=seed).to(batches[0].device).eval()
    calibrate(untrained, batches)
    return {PIXELS: ProtoNet(Flatten()), UNTRAINED: ProtoNet(untrained)}


def _calibration_batches(items: Int, gather: Gather, seed: int) -> list[Tensor]:
    calibration = generator(seed, "baselines", "calibration").permutation(items)[: _BATCH * _CALIBRATION_BATCHES]
    return [gather(part) for part in np.array_split(calibration, max(1, len(calibration) // _BATCH))]


def pretrain(
    backbone: Backbone, items: Int, labels: Int, gather: Gather, *, seed: int, n_steps: int, lines: LiveLines
) -> None:
    """Train `backbone` in place to tell apart all classes of `labels`: Adam with a cosine schedule, batches of 128.

    The baseline of Chen et al., "A Closer Look at Few-shot Classification", 2019.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(backbone.n_features, int(labels.max()) + 1)
    head.to(next(backbone.parameters()).device)
    optimizer = Adam([*backbone.parameters(), *head.parameters()])
    backbone.train()
    with torch.enable_grad():
        for step, rows in zip(range(n_steps), _shuffled(len(items), seed), strict=False):
            images = gather(items[rows])
            loss = F.cross_entropy(
                head(backbone(images, len(images))), torch.from_numpy(labels[rows]).to(images.device)
            )
            gradients = torch.autograd.grad(loss, optimizer.parameters)
            optimizer.step(flat(gradients), _LEARNING_RATE * cosine_decay(step, n_steps))
            lines.mention(partial("pretrained baseline: step {:,} of {:,}".format, step + 1, n_steps))


def _meta_train_items(dataset: PackedDataset) -> tuple[Int, Int]:
    """Items (I,) of the meta_train classes, and the number of each one's class among them (I,)."""
    table = dataset.class_table("meta_train")
    present = np.arange(table.items.shape[1]) < table.counts[:, None]
    return table.items[present], np.nonzero(present)[0]


def _shuffled(n_items: int, seed: int) -> Iterator[Int]:
    """Batches of rows, without end, every row once before any comes again."""
    n_batch, draw = min(_BATCH, n_items), generator(seed, "baselines", "pretrain")
    while True:
        order = draw.permutation(n_items)
        for start in range(0, n_items - n_batch + 1, n_batch):
            yield order[start : start + n_batch]
