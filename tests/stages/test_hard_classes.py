"""Train, keep the errors on the classes of training, and train again on the hard ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kshot.cli.data import difficulty
from kshot.config import load_params, params_from
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import train_pools
from kshot.episodes.sampling import HardClasses
from kshot.errors import ConfigError
from kshot.stages import meta_train, task_pool
from kshot.workspace import Workspace
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
    with pytest.raises(ConfigError, match="first.json holds the errors of another model; next: kshot difficulty"):
        difficulty("first")


def test_hard_classes_are_for_the_episodes_of_training_alone() -> None:
    params = tiny_params()
    params["task_pool"]["meta_val"]["sampler"] = {"name": "hard_classes", "difficulty": "first"}
    with pytest.raises(ConfigError, match=r"task_pool.meta_val.sampler.name is 'hard_classes'; need one of"):
        params_from(params, source="params.yaml")
