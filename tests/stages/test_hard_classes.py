"""Train, keep the errors on the classes of training, and train again on the hard ones."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kshot.cli.difficulty import difficulty
from kshot.config import Params, load_params, params_from
from kshot.data.difficulty import Difficulty, difficulty_json
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import train_pools
from kshot.episodes.sampling import HardClasses
from kshot.errors import ConfigError, DataError
from kshot.stages import meta_train, task_pool
from kshot.workspace import Workspace
from tests.tiny_dataset import tiny_dataset
from tests.tiny_project import tiny_params, write_project


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    params = load_params(write_project(tmp_path, tiny_params()) / "params.yaml")
    for stage in (task_pool, meta_train):
        stage.run(params, Workspace(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def test_classes_that_the_last_model_confuses_are_drawn_more_often(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    difficulty("first")
    said = capsys.readouterr().out
    kept = json.loads((trained / "data/difficulty/first.json").read_text())
    assert set(kept["queries"]) == {f"train/c{number}" for number in range(5)}
    assert "34 episodes 3-way 1-shot of 5 classes; most often wrong: train/c" in said
    assert "sampler: {name: hard_classes, difficulty: first}" in said

    params = load_params(trained / "params.yaml")
    sampler = HardClasses(difficulty="first", exponent=4.0)
    settings = replace(params.task_pool, meta_train=replace(params.task_pool.meta_train, sampler=sampler))
    dataset = PackedDataset.open(trained / "data/tiny")
    (pool,) = train_pools(dataset, settings, seed=1)
    drawn = np.bincount(pool.episodes(range(2_000)).class_ids.ravel(), minlength=len(dataset.classes))
    of_rate = sorted(kept["queries"], key=lambda name: kept["errors"][name] / kept["queries"][name])
    assert drawn[dataset.classes.index(of_rate[-1])] > drawn[dataset.classes.index(of_rate[0])]


def test_a_name_stands_for_its_errors_for_good(trained: Path) -> None:
    difficulty("first")
    difficulty("first")  # the same ones
    kept = trained / "data/difficulty/first.json"
    content = json.loads(kept.read_text()) | {"weights_sha256": "of another"}
    kept.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="first.json holds other errors already, .*; next: kshot difficulty first-2"):
        difficulty("first")


def with_hard_classes(root: Path) -> Params:
    raw = tiny_params()
    raw["task_pool"]["meta_train"]["sampler"] = {"name": "hard_classes", "difficulty": "first"}
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    return load_params(root / "params.yaml")


def test_pools_name_the_errors_and_the_model_that_made_them_and_a_training_uses_no_others(trained: Path) -> None:
    workspace, kept = Workspace(trained), trained / "data/difficulty/first.json"
    pools = workspace.output("task_pool") / "pools.json"
    assert "difficulty" not in json.loads(pools.read_text())["meta_train"]
    of_weights = sha256(workspace.weights.read_bytes()).hexdigest()
    difficulty("first")
    params = with_hard_classes(trained)
    with pytest.raises(
        DataError, match="were made with errors none of hard classes; .* next: dvc repro --force task_pool"
    ):
        meta_train.run(params, workspace)
    task_pool.run(params, workspace)
    assert json.loads(pools.read_text())["meta_train"]["difficulty"] == {
        "difficulty_sha256": sha256(kept.read_bytes()).hexdigest(),
        "difficulty_of_weights": of_weights,
    }
    meta_train.run(params, workspace)
    assert sha256(workspace.weights.read_bytes()).hexdigest() != of_weights
    others = json.loads(kept.read_text())
    others["errors"] |= {"train/c0": 0}
    kept.write_text(json.dumps(others))
    with pytest.raises(
        DataError,
        match="the task pools were made with errors .* data/difficulty holds .*; next: dvc repro --force task_pool",
    ):
        meta_train.run(params, workspace)


def test_a_training_with_other_errors_does_not_resume_from_the_checkpoints_of_these(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meta_train, "forget_checkpoints", lambda trained: None)
    workspace, kept = Workspace(trained), trained / "data/difficulty/first.json"
    difficulty("first")
    params, resumed = with_hard_classes(trained), []
    for n_errors in (0, 0, 1):
        found = json.loads(kept.read_text())
        found["errors"] |= {"train/c0": n_errors}
        kept.write_bytes(difficulty_json(Difficulty(**found)))
        capsys.readouterr()
        for stage in (task_pool, meta_train):
            stage.run(params, workspace)
        resumed.append("resuming" in capsys.readouterr().out)
    assert resumed == [False, True, False]


def test_a_model_of_another_dataset_has_no_errors_to_keep(trained: Path) -> None:
    tiny_dataset(n_classes=6, n_images=6).write(trained / "data/other")
    (trained / "params.yaml").write_text(yaml.safe_dump(tiny_params() | {"dataset": {"name": "other"}}))
    with pytest.raises(DataError, match="the task pools were drawn from data .* data/other is .*; next: make train"):
        difficulty("first")
    assert not (trained / "data/difficulty").exists()


def test_hard_classes_are_for_the_episodes_of_training_alone() -> None:
    params = tiny_params()
    params["task_pool"]["meta_val"]["sampler"] = {"name": "hard_classes", "difficulty": "first"}
    with pytest.raises(ConfigError, match=r"task_pool.meta_val.sampler.name is 'hard_classes'; need one of"):
        params_from(params, source="params.yaml")
