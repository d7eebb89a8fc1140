"""The baselines that a meta-trained learner is held against."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kshot.algorithms import ProtoNetConfig
from kshot.algorithms.linear_probe import LinearProbe
from kshot.backbones import Conv4Config
from kshot.backbones.contract import Flatten
from kshot.data.gather import image_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.evaluation.baselines import PIXELS, PRETRAINED, UNTRAINED, baselines, pretrain
from kshot.evaluation.scoring import score_episodes
from kshot.model import ModelConfig
from kshot.runtime.lines import silent_lines
from tests.tiny_dataset import tiny_dataset
from tests.toy_episodes import LinearBackbone, point_pools, separable_points


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_linear_probe_finds_what_separates_the_support() -> None:
    _, pool, gather = point_pools(EpisodeShape(n_way=3, k_shot=5, n_query=2))
    found = score_episodes(LinearProbe(Flatten()), pool.indices, gather).accuracy.mean()
    assert found > 0.6, "ten of sixteen numbers are noise, so a fit to 15 points is no more than good"


def test_ordinary_training_makes_features_that_a_linear_probe_can_use() -> None:
    _, labels = separable_points()
    train = labels < 12
    backbone = LinearBackbone()
    backbone.n_features = 8  # type: ignore[assignment]
    _, pool, gather = point_pools()
    before = score_episodes(LinearProbe(backbone), pool.indices, gather).accuracy.mean()
    rows = np.flatnonzero(train)
    pretrain(backbone, rows, labels[train], gather, seed=1, n_steps=600, lines=silent_lines())  # type: ignore[arg-type]
    after = score_episodes(LinearProbe(backbone), pool.indices, gather).accuracy.mean()
    assert after > before + 0.1


def test_the_baselines_are_the_same_again_and_the_pretrained_one_can_be_left_out(tmp_path: Path) -> None:
    tiny_dataset(n_images=6).write(tmp_path / "tiny")
    dataset = PackedDataset.open(tmp_path / "tiny")
    config = ModelConfig(
        algorithm=ProtoNetConfig(),
        backbone=Conv4Config(width=2),
        item=dataset.item,
        train_shape=EpisodeShape(n_way=2, k_shot=1, n_query=1),
    )
    gather = image_gather(dataset, torch.device("cpu"))

    def made(n_steps: int) -> dict[str, dict[str, torch.Tensor]]:
        found = baselines(config, dataset, gather, seed=1, pretrain_steps=n_steps, lines=silent_lines())
        return {name: learner.state_dict() for name, learner in found.items()}

    first, again = made(2), made(2)
    assert list(first) == [PIXELS, UNTRAINED, PRETRAINED]
    for name in first:
        assert all(torch.equal(tensor, again[name][key]) for key, tensor in first[name].items())
    weights = "backbone.convolutions.0.weight"
    assert not torch.equal(first[UNTRAINED][weights], first[PRETRAINED][weights])
    assert list(made(0)) == [PIXELS, UNTRAINED]


def test_a_linear_probe_is_never_meta_trained() -> None:
    loader, _, _ = point_pools()
    with pytest.raises(NotImplementedError, match="never meta-trained"):
        LinearProbe(nn.Identity()).meta_loss(loader.load(range(1)))
