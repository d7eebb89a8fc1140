"""Trainings that use no label of meta_train, through the stages."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kshot.config import load_params
from kshot.errors import ConfigError
from kshot.stages import evaluate, meta_train, pretrain, seeds, task_pool, validate
from kshot.workspace import Workspace
from tests.tiny_dataset import tiny_dataset
from tests.tiny_project import tiny_params, write_project
from tests.trainings import ENVIRONMENT, assert_same_weights, weights

N_TRAIN = 30  # items, which come first
SIMCLR = {"name": "simclr", "n_steps": 3, "batch_size": 8, "validate_every": 3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def unlabelled_params(**changes: Any) -> dict[str, Any]:
    params = tiny_params() | changes
    params["task_pool"]["meta_train"]["labels"] = {"name": "instances"}
    params["meta_train"]["augment"] = {"query": [{"name": "affine"}, {"name": "noise"}]}
    if "pretrain" in changes:
        params["meta_train"]["initial"] = "pretrained"
    return params


def ran(root: Path, params: dict[str, Any], *stages: ModuleType) -> Workspace:
    """The stages on a project whose items of meta_train are labelled at random, where its name says so."""
    write_project(root, params)
    if root.name == "permuted":
        tiny = tiny_dataset(n_classes=5, n_images=6)
        names = tiny.manifest["class"][:N_TRAIN]
        tiny.manifest.loc[: N_TRAIN - 1, "class"] = np.random.default_rng(3).permutation(names)
        for file in (root / "data/tiny").iterdir():
            file.unlink()
        (root / "data/tiny").rmdir()
        tiny.write(root / "data/tiny")
    workspace = Workspace(root)
    for stage in stages:
        stage.run(load_params(workspace.params), workspace)
    return workspace


@pytest.mark.parametrize("changes", [{}, {"pretrain": SIMCLR}], ids=["from random weights", "after simclr"])
def test_permuted_labels_of_meta_train_give_the_same_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    stages = (task_pool, pretrain, meta_train)
    found = [ran(tmp_path / name, unlabelled_params(**changes), *stages) for name in ("given", "permuted")]
    assert found[0].weights.read_bytes() == found[1].weights.read_bytes()


def test_permuted_labels_matter_where_they_are_used(tmp_path: Path) -> None:
    found = [ran(tmp_path / name, tiny_params(), task_pool, meta_train) for name in ("given", "permuted")]
    assert found[0].weights.read_bytes() != found[1].weights.read_bytes()


def test_the_weights_are_the_same_in_one_process_and_in_two(tmp_path: Path) -> None:
    for n_processes in (1, 2):
        params = unlabelled_params()
        params["process"]["n_processes"] = n_processes
        root = ran(tmp_path / str(n_processes), params, task_pool).root
        subprocess.run([sys.executable, "-m", "kshot", "train"], cwd=root, env=ENVIRONMENT, check=True)
    assert_same_weights(tmp_path / "1", tmp_path / "2")


def test_items_without_labels_are_one_class_that_is_valid_and_learned_from(tmp_path: Path) -> None:
    params = unlabelled_params(seeds=[2])
    root = write_project(tmp_path, params)
    tiny = tiny_dataset(n_classes=5, n_images=6)
    tiny.manifest.loc[: N_TRAIN - 1, "class"] = "unlabelled"
    tiny.splits["meta_train"] = ["unlabelled"]
    tiny.write(root / "data/one_class")
    params["dataset"]["name"] = "one_class"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    workspace, loaded = Workspace(root), load_params(root / "params.yaml")
    for stage in (validate, task_pool, pretrain, meta_train, evaluate):
        stage.run(loaded, workspace)
    seeds.run(loaded, workspace, "2")
    pools = json.loads((workspace.output("task_pool") / "pools.json").read_text())
    assert pools["meta_train"]["labels"] == {"name": "instances"} and pools["meta_train"]["n_classes"] == N_TRAIN
    assert all(torch.isfinite(tensor).all() for tensor in weights(root).values())
    metrics = json.loads((workspace.output("evaluate") / "metrics.json").read_text())
    said = "none used in meta_train; the classes of its episodes are single items and their augmented copies"
    assert (metrics["labels"], metrics["held_in"]) == (said, [])
    assert said in (workspace.output("evaluate") / "report.html").read_text()


def test_the_report_of_given_labels_says_nothing_of_them(tmp_path: Path) -> None:
    workspace = ran(tmp_path, tiny_params(), task_pool, pretrain, meta_train, evaluate)
    metrics = json.loads((workspace.output("evaluate") / "metrics.json").read_text())
    assert "labels" not in metrics and metrics["held_in"]
    pools = json.loads((workspace.output("task_pool") / "pools.json").read_text())
    assert set(pools["meta_train"]) == {"seed", "shape", "sampler", "n_classes"}


def test_an_algorithm_that_is_trained_on_labelled_classes_is_refused(tmp_path: Path) -> None:
    params = unlabelled_params()
    params["meta_train"]["algorithm"] = {"name": "ridge"}
    workspace = ran(tmp_path, params, task_pool)
    with pytest.raises(ConfigError, match="labels is instances, and ridge is trained on batches .* next: set meta_tr"):
        meta_train.run(load_params(workspace.params), workspace)
