"""The baselines that a trained learner is held against."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.algorithms import (
    AlgorithmConfig,
    FinetuneConfig,
    Learner,
    LinearProbeConfig,
    ProtoNetConfig,
    RidgeConfig,
    TIMConfig,
    TipAdapterConfig,
)
from kshot.algorithms.answering import NON_TRANSDUCTIVE, normalization_mode
from kshot.algorithms.linear_probe import LinearProbe
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones import Conv4Config
from kshot.backbones.contract import Flatten
from kshot.backbones.layers.adapter import LinearAdapter
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.errors import EpisodeError
from kshot.evaluation.baselines import (
    LDA_HEAD,
    LINEAR_HEAD,
    LOGISTIC,
    PIXELS,
    PROTOTYPES,
    RIDGE,
    SIMPLESHOT,
    UNTRAINED,
    pretrained_baselines,
    untrained_baselines,
)
from kshot.evaluation.features import is_head
from kshot.evaluation.scoring import score_episodes
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from tests.tiny_dataset import tiny_dataset
from tests.toy_episodes import point_pools

HEADS = {PROTOTYPES, SIMPLESHOT, LINEAR_HEAD, RIDGE, LOGISTIC, LDA_HEAD}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_linear_probe_finds_what_separates_the_support() -> None:
    _, pool, gather = point_pools(EpisodeShape(n_way=3, k_shot=5, n_query=2))
    found = score_episodes(LinearProbe(Flatten()), pool.indices, gather).accuracy.mean()
    assert found > 0.6, "ten of sixteen numbers are noise, so a fit to 15 points is no more than good"


def test_the_baselines_without_training_are_the_same_again(tmp_path: Path) -> None:
    tiny_dataset(n_images=6).write(tmp_path / "tiny")
    dataset = PackedDataset.open(tmp_path / "tiny")
    config = model_config(dataset)
    gather = item_gather(dataset, torch.device("cpu"))
    first, again = (untrained_baselines(config, dataset, gather, seed=1) for _ in range(2))
    assert list(first) == [PIXELS, UNTRAINED]
    for name, learner in first.items():
        expected = again[name].state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in learner.state_dict().items())


def test_heads_stand_on_what_the_pretrain_stage_left(tmp_path: Path) -> None:
    tiny_dataset(n_images=6).write(tmp_path / "tiny")
    dataset = PackedDataset.open(tmp_path / "tiny")
    config, gather = model_config(dataset), item_gather(dataset, torch.device("cpu"))
    learner = build_learner(config, init_seed=3)
    heads = partial(pretrained_baselines, tmp_path / "model", dataset=dataset, gather=gather, seed=1)
    assert heads(beside=ProtoNet(Flatten())) == {}
    save_model(tmp_path / "model", SavedModel(learner=learner, config=config))
    found = heads(beside=ProtoNet(Flatten()))
    assert list(found) == [PROTOTYPES, SIMPLESHOT, LINEAR_HEAD, RIDGE, LOGISTIC, LDA_HEAD]
    (backbone,) = {head.backbone for head in found.values()}
    weights = backbone.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in learner.backbone.state_dict().items())
    assert float(found[SIMPLESHOT].get_buffer("centre").abs().sum()) > 0


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (RidgeConfig(), RIDGE),
        (LinearProbeConfig(), LINEAR_HEAD),
        (TipAdapterConfig(), None),
        (TIMConfig(), None),
        (FinetuneConfig(), None),
    ],
    ids=lambda it: getattr(it, "name", ""),
)
def test_beside_a_head_stand_the_other_kinds_of_head(tmp_path: Path, config: AlgorithmConfig, own: str | None) -> None:
    beside, found = heads_beside(tmp_path, config)
    assert HEADS - found.keys() == ({own} if own else set())
    assert is_head(beside) == (config.name != "finetune")


def test_no_baseline_is_transductive(tmp_path: Path) -> None:
    """The best of them is what a model has to beat, and a model is served one query at a time."""
    _, found = heads_beside(tmp_path, TIMConfig())
    assert found.keys() == HEADS
    assert {normalization_mode(head) for head in found.values()} == {NON_TRANSDUCTIVE}


def test_a_head_on_an_adapter_is_held_against_its_kind_without_one(tmp_path: Path) -> None:
    beside, found = heads_beside(tmp_path, RidgeConfig(), adapter=LinearAdapter(width=4))
    assert found.keys() == HEADS and not is_head(beside)


def heads_beside(
    folder: Path, config: AlgorithmConfig, **settings: Any
) -> tuple[Learner[Any], dict[str, Learner[Any]]]:
    tiny_dataset(n_images=6).write(folder / "tiny")
    dataset = PackedDataset.open(folder / "tiny")
    of_model = model_config(dataset)
    save_model(folder / "model", SavedModel(learner=build_learner(of_model), config=of_model))
    beside = build_learner(replace(of_model, algorithm=config, **settings))
    gather = item_gather(dataset, torch.device("cpu"))
    return beside, pretrained_baselines(folder / "model", beside, dataset, gather, seed=1)


def test_a_linear_probe_without_a_head_for_the_training_classes_says_so() -> None:
    with pytest.raises(EpisodeError, match="has no head for the training classes; next: build it with class_head"):
        LinearProbe(Flatten()).class_logits(torch.zeros(1, 2))


def model_config(dataset: PackedDataset, algorithm: ProtoNetConfig | LinearProbeConfig | None = None) -> ModelConfig:
    return ModelConfig(
        algorithm=algorithm or LinearProbeConfig(),
        backbone=Conv4Config(width=2),
        item=dataset.item,
        train_shape=EpisodeShape(n_way=2, k_shot=1, n_query=1),
        n_train_classes=2,
    )
