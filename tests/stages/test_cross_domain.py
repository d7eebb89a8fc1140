"""A trained learner on the held-out classes of another dataset, with real files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kshot.config import Params, load_params, params_from
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import Uniform, WithinDomain
from kshot.errors import ConfigError, DataError, EpisodeError
from kshot.evaluation.scoring import score_episodes
from kshot.model import load_model
from kshot.project.preflight import check_before_run
from kshot.stages import cross_domain, meta_train, pretrain, task_pool
from kshot.workspace import Workspace
from tests.tiny_dataset import tiny_dataset
from tests.tiny_project import tiny_params, write_project


@pytest.fixture
def params(tmp_path: Path) -> Params:
    """A project whose params list another dataset, which is there."""
    write_project(tmp_path, tiny_params() | {"cross_domain": ["other"]})
    other = tiny_dataset(n_classes=4, n_images=5)
    other.pixels[:] = 255 - other.pixels
    other.write(tmp_path / "data" / "other")
    return load_params(tmp_path / "params.yaml")


def test_every_setting_is_scored_on_the_held_out_classes_of_the_other_dataset(params: Params, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    check_before_run(params, Workspace(tmp_path))
    task_pool.run(params, Workspace(tmp_path))
    meta_train.run(params, Workspace(tmp_path))
    cross_domain.run(params, Workspace(tmp_path), "other")
    written = json.loads((tmp_path / "artifacts/cross_domain/other/metrics.json").read_text())
    other = PackedDataset.open(tmp_path / "data/other")
    assert (written["dataset"], written["data_hash"]) == ("other", other.content_hash)
    assert [result["setting"] for result in written["results"]] == ["3w1s", "2w2s"]
    shape = params.task_pool.meta_test.kinds()["3w1s"].shape
    table = other.class_table("meta_test")
    pool = SampledPool.of_split(table, shape, Uniform(), seed=1, split="cross_domain/other").freeze(10)
    learner = load_model(tmp_path / "artifacts/meta_train/model").learner
    expected = score_episodes(learner, pool.indices, item_gather(other, torch.device("cpu"))).accuracy.mean()
    assert written["results"][0]["accuracy"] == pytest.approx(expected)
    assert written["results"][0]["pool_hash"] == pool.hash
    assert list(written["results"][0]["baselines"]) == ["pixel nearest centroid"]


def test_heads_on_the_pretrained_backbone_stand_beside_the_learner_on_the_other_dataset(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    trained = {"pretrain": {"name": "supervised", "n_steps": 2, "validate_every": 2}, "cross_domain": ["other"]}
    write_project(tmp_path, tiny_params() | trained)
    tiny_dataset(n_classes=4, n_images=5).write(tmp_path / "data" / "other")
    loaded = load_params(tmp_path / "params.yaml")
    for stage in (task_pool, pretrain, meta_train):
        stage.run(loaded, Workspace(tmp_path))
    cross_domain.run(loaded, Workspace(tmp_path), "other")
    results = json.loads((tmp_path / "artifacts/cross_domain/other/metrics.json").read_text())["results"]
    assert {"pretrained, ridge", "pretrained, lda"} < results[0]["baselines"].keys()


def test_what_cannot_be_scored_is_refused_before_training(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset at .*nothing; found: other, tiny"):
        check_before_run(replace(params, cross_domain=("nothing",)), Workspace(tmp_path))
    tiny_dataset(n_classes=2, n_images=5).write(tmp_path / "data" / "few")
    with pytest.raises(EpisodeError, match="meta_test of few: found 2 classes; 3-way 1-shot needs 3"):
        check_before_run(replace(params, cross_domain=("few",)), Workspace(tmp_path))
    pools = replace(params.task_pool, meta_test=replace(params.task_pool.meta_test, sampler=WithinDomain()))
    with pytest.raises(EpisodeError, match="found no domains; [^;]*; next: take other out of cross_domain$"):
        check_before_run(replace(params, task_pool=pools), Workspace(tmp_path))


@pytest.mark.parametrize("listed", [["tiny"], ["other", "other"]])
def test_other_datasets_are_others_and_listed_once(listed: list[str]) -> None:
    with pytest.raises(ConfigError, match="cross_domain lists other datasets than dataset.name, each once"):
        params_from(tiny_params() | {"cross_domain": listed}, source="params.yaml")
