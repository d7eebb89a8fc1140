"""Trainings on clusters of the items of meta_train, through the stages."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml

from kshot.algorithms import AlgorithmConfig
from kshot.algorithms.learner import MetaLearner
from kshot.backbones import Conv4Config
from kshot.config import load_params
from kshot.data.packed import PackedDataset
from kshot.episodes.clusters import NoPseudoLabels, partitions_of
from kshot.errors import ConfigError, DataError, EpisodeError
from kshot.ingest.weights import Brought, add_weights
from kshot.model import build_learner, load_model
from kshot.stages import evaluate, launch, meta_train, pretrain, pseudo_labels, seeds, task_pool, validate
from kshot.workspace import Workspace
from tests.tiny_dataset import noise, tiny_dataset
from tests.tiny_project import tiny_params
from tests.trainings import assert_same_weights, kill_all, train_command, wait_for_checkpoint, weights

N_TRAIN = 30  # items, which come first
KMEANS = {"name": "kmeans", "features": "values", "n_clusters": 5, "n_partitions": 3}
SIMCLR = {"name": "simclr", "n_steps": 3, "batch_size": 8, "validate_every": 3}
ROTATION = {"name": "rotation", "n_steps": 3, "batch_size": 8, "validate_every": 3}
STAGES = (task_pool, pretrain, pseudo_labels)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def clustered_params(**changes: Any) -> dict[str, Any]:
    params = tiny_params() | {"pseudo_labels": KMEANS} | changes
    params["task_pool"]["meta_train"]["labels"] = {"name": "clusters"}
    return params


def ran(root: Path, params: dict[str, Any], *stages: ModuleType, permuted: bool = False) -> Workspace:
    """The stages on a project whose items of meta_train look like one of six pictures each."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    if not (root / "data/tiny").exists():
        tiny = tiny_dataset(n_classes=5, n_images=6)
        pictures = noise(6, seed=9, high=200)[np.random.default_rng(2).permutation(np.arange(N_TRAIN) % 6)]
        tiny.pixels[:N_TRAIN] = pictures + noise(N_TRAIN, seed=8, high=40)
        if permuted:
            names = tiny.manifest["class"][:N_TRAIN]
            tiny.manifest.loc[: N_TRAIN - 1, "class"] = np.random.default_rng(3).permutation(names)
        tiny.write(root / "data/tiny")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    workspace = Workspace(root)
    for stage in stages:
        stage.run(load_params(workspace.params), workspace)
    return workspace


def written(workspace: Workspace) -> tuple[bytes, dict[str, Any]]:
    folder = workspace.output("pseudo_labels")
    return (folder / "partitions.safetensors").read_bytes(), json.loads((folder / "metrics.json").read_text())


def test_where_no_clusters_are_asked_for_nothing_is_read_and_always_the_same_written(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    pseudo_labels.run(load_params(tmp_path / "params.yaml"), Workspace(tmp_path))
    folder = Workspace(tmp_path).output("pseudo_labels")
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"metrics.json": '{\n  "name": "none"\n}\n'}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pseudo_labels": KMEANS | {"name": "mini_batch_kmeans"}},
        {"pretrain": SIMCLR, "pseudo_labels": KMEANS | {"features": "pretrained"}},
        {"pretrain": ROTATION, "pseudo_labels": KMEANS | {"features": "pretrained"}},
    ],
    ids=["pixels", "pixels in small batches", "simclr", "rotation"],
)
def test_permuted_labels_of_meta_train_give_the_same_pool_and_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    stages = (*STAGES, meta_train)
    one = ran(tmp_path / "given", clustered_params(**changes), *stages)
    other = ran(tmp_path / "permuted", clustered_params(**changes), *stages, permuted=True)
    labels = [PackedDataset.open(workspace.dataset("tiny")).labels[:N_TRAIN] for workspace in (one, other)]
    assert not np.array_equal(*labels)
    assert written(one)[0] == written(other)[0]
    assert one.weights.read_bytes() == other.weights.read_bytes()


def test_clusters_of_pretrained_weights_are_kept_features_and_an_adapter_is_trained_on_them(tmp_path: Path) -> None:
    params = clustered_params(
        backbone={"name": "conv4", "width": 4, "weights": "mine", "freeze": "all"},
        pseudo_labels=KMEANS | {"features": "pretrained"},
    )
    params["meta_train"] |= {"initial": "pretrained", "adapter": {"name": "linear", "width": 8}}
    workspace = ran(tmp_path, params)
    torch.manual_seed(7)
    backbone = Conv4Config(width=4).build(PackedDataset.open(workspace.dataset("tiny")).item)
    unlike_zero = {name: tensor + 0.1 for name, tensor in backbone.state_dict().items()}
    none, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    brought = Brought(tensors=unlike_zero, source="mine.pth", licence="MIT", mean=none, std=one)
    add_weights(workspace.pretrained_weights("mine"), brought)
    ran(tmp_path, params, *STAGES, meta_train)
    assert list(workspace.features.iterdir())
    items = PackedDataset.open(workspace.dataset("tiny"))
    embedded = load_model(workspace.pretrained_model).learner.backbone(
        items.item.tensor(torch.from_numpy(items.gather(np.arange(N_TRAIN)))), None
    )
    settings = load_params(workspace.params).pseudo_labels
    assert not isinstance(settings, NoPseudoLabels)
    expected = partitions_of(embedded.detach().numpy(), np.arange(N_TRAIN), settings, seed=1)
    assert written(workspace)[0] == expected.to_bytes()


def test_items_that_look_alike_are_a_class_and_small_clusters_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = clustered_params(pseudo_labels=KMEANS | {"n_clusters": 8, "n_partitions": 2})
    _, metrics = written(ran(tmp_path, changed, *STAGES))
    (left_out,) = metrics["left_out"].items()
    assert left_out[0] == "of fewer than 3 items" and 4 <= left_out[1] < 16
    assert metrics["clusters"] == 16
    said = f"{16 - left_out[1]} of 16 clusters have 3 items or more; {left_out[1]} are left out"
    assert said in capsys.readouterr().out
    _, metrics = written(ran(tmp_path, clustered_params(pseudo_labels=KMEANS | {"n_clusters": 6}), *STAGES))
    assert metrics["clusters"] == 18


def test_made_again_the_pool_is_the_same_and_another_seed_makes_another(tmp_path: Path) -> None:
    first, metrics = written(ran(tmp_path, clustered_params(), *STAGES))
    again, same = written(ran(tmp_path, clustered_params(), *STAGES))
    assert (first, metrics) == (again, same)
    other, _ = written(ran(tmp_path, clustered_params(seed=2), *STAGES))
    assert other != first


def test_killed_and_run_again_the_weights_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    params = clustered_params()
    params["meta_train"]["training"] |= {"n_steps": 150, "validate_every": 75}
    root = ran(tmp_path / "killed", params, *STAGES).root
    process = train_command(root)
    wait_for_checkpoint(root)
    kill_all(process)
    assert not (root / "artifacts/meta_train/model").exists()
    done = train_command(root)
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0 and "resuming from the checkpoint of step" in output, output
    assert_same_weights(root, ran(tmp_path / "unbroken", params, *STAGES, meta_train).root)


def test_checkpoints_of_other_clusters_are_not_gone_on_from(tmp_path: Path) -> None:
    workspace = ran(tmp_path, clustered_params(), *STAGES)
    keys = set()
    for seed in (1, 2):
        changed = load_params(workspace.params)
        pseudo_labels.run(replace(changed, seed=seed), workspace)
        dataset = PackedDataset.open(workspace.dataset("tiny"))
        training = launch.training_of(changed, dataset, workspace, seed=1)
        keys.add(launch._training_key("meta_train", training, changed, workspace, dataset, "pool"))
    assert len(keys) == 2


def test_every_learner_of_episodes_is_trained_on_them(tmp_path: Path) -> None:
    params = clustered_params()
    params["meta_train"]["training"] |= {"n_steps": 1, "validate_every": 1}
    workspace = ran(tmp_path, params, *STAGES)
    names = []
    for config in (config() for config in get_args(get_args(AlgorithmConfig)[0])):
        loaded = load_params(workspace.params)
        loaded = replace(loaded, meta_train=replace(loaded.meta_train, algorithm=config))
        dataset = PackedDataset.open(workspace.dataset("tiny"))
        if isinstance(build_learner(launch.model_config(loaded, dataset, config)), MetaLearner):
            names.append(config.name)
            meta_train.run(loaded, workspace)
            assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values()), config.name
    assert {"protonet", "maml", "feat"} <= set(names)


def test_a_chain_on_clusters_says_that_no_label_was_used(tmp_path: Path) -> None:
    params = clustered_params(seeds=[2], pretrain=SIMCLR, pseudo_labels=KMEANS | {"features": "pretrained"})
    params["meta_train"]["initial"] = "pretrained"
    params["task_pool"]["meta_train"]["views"] = ["mirrored"]
    workspace = ran(tmp_path, params, validate, *STAGES, meta_train, evaluate)
    seeds.run(load_params(workspace.params), workspace, "2")
    pools = json.loads((workspace.output("task_pool") / "pools.json").read_text())
    assert pools["meta_train"]["labels"] == {"name": "clusters"} and "n_classes" not in pools["meta_train"]
    metrics = json.loads((workspace.output("evaluate") / "metrics.json").read_text())
    said = "none used in meta_train; the classes of its episodes are clusters of the features of its items"
    assert (metrics["labels"], metrics["held_in"]) == (said, [])
    assert said in (workspace.output("evaluate") / "report.html").read_text()


def test_fewer_clusters_than_an_episode_has_classes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        EpisodeError,
        match=r"a partition of meta_train has \d clusters? of at least 3 items; 3-way 1-shot with 2 queries needs 3; "
        r"next: lower pseudo_labels.n_clusters, or n_way or n_query of task_pool.meta_train",
    ):
        ran(tmp_path, clustered_params(pseudo_labels=KMEANS | {"n_clusters": 25}), *STAGES)
    assert not Workspace(tmp_path).output("pseudo_labels").exists()
    with pytest.raises(ConfigError, match="n_clusters is 500, and meta_train has 30 items; .* next: set n_clusters: 2"):
        ran(tmp_path, clustered_params(pseudo_labels=KMEANS | {"n_clusters": 500}), *STAGES)


def test_a_training_without_the_clusters_or_on_those_of_other_data_is_refused(tmp_path: Path) -> None:
    workspace = ran(tmp_path, clustered_params(), task_pool)
    with pytest.raises(DataError, match="no pseudo-classes at .*; next: kshot stage pseudo_labels, or make train"):
        meta_train.run(load_params(workspace.params), workspace)
    pseudo_labels.run(load_params(workspace.params), workspace)
    file = workspace.output("pseudo_labels") / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data_hash": "0" * 64}))
    with pytest.raises(DataError, match="made from data 000000000000; .* next: kshot stage pseudo_labels"):
        meta_train.run(load_params(workspace.params), workspace)


def test_an_algorithm_that_is_trained_on_labelled_classes_is_refused(tmp_path: Path) -> None:
    params = clustered_params()
    params["meta_train"]["algorithm"] = {"name": "ridge"}
    workspace = ran(tmp_path, params, *STAGES)
    with pytest.raises(ConfigError, match="labels is clusters, and ridge is trained on batches .* next: set meta_tr"):
        meta_train.run(load_params(workspace.params), workspace)
