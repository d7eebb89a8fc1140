"""A union through the stages: episodes within one of its members, drawn by weight."""

import json
from pathlib import Path

import pytest
import torch

from kshot.config import load_params, params_from
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.errors import ConfigError, DataError
from kshot.ingest.union import unite
from kshot.stages import cross_domain, evaluate, meta_train, task_pool, validate
from kshot.workspace import Workspace
from tests.tiny_dataset import noise, tiny_dataset
from tests.tiny_project import tiny_params, write_project


def test_a_union_is_validated_trained_on_and_evaluated(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    params = tiny_params() | {"dataset": {"name": "both", "of": ["tiny", "other"]}}
    params["task_pool"]["meta_train"]["sampler"] = {"name": "within_domain", "weights": {"other": 3}}
    params["task_pool"]["meta_test"]["sampler"] = {"name": "within_domain"}
    write_project(tmp_path, params)
    other = tiny_dataset(n_classes=4, n_images=5)
    other.pixels = noise(len(other.pixels), seed=99)
    other.write(tmp_path / "data" / "other")
    loaded, workspace = load_params(tmp_path / "params.yaml"), Workspace(tmp_path)
    with pytest.raises(DataError, match="both is not the union of 'tiny', 'other' as they are now; next: kshot unite"):
        validate.run(loaded, workspace)
    unite(loaded.dataset.of, "both", workspace.data, progress=lambda done, total: None)
    for stage in (validate, task_pool, meta_train, evaluate):
        stage.run(loaded, workspace)
    dataset = PackedDataset.open(tmp_path / "data" / "both")
    pool = read_frozen(tmp_path / "artifacts/task_pool", dataset, loaded.task_pool).test["3w1s"]
    members = [{dataset.classes[number].split("/")[0] for number in row} for row in pool.indices.class_ids.tolist()]
    assert all(len(found) == 1 for found in members) and len(set.union(*members)) == 2
    metrics = json.loads((tmp_path / "artifacts/evaluate/metrics.json").read_text())
    assert metrics["results"][0]["title"] == "3-way 1-shot within a domain"
    del params["task_pool"]["meta_test"]["sampler"]  # a member has no domains of its own
    cross_domain.run(params_from(params, source="params.yaml"), workspace, "tiny")
    (first, _) = json.loads((tmp_path / "artifacts/cross_domain/tiny/metrics.json").read_text())["results"]
    assert (first["title"], first["episodes"]) == ("3-way 1-shot", 10)


@pytest.mark.parametrize("members", [["tiny"], ["tiny", "tiny"], ["tiny", "both"]])
def test_a_union_has_other_datasets_each_once(members: list[str]) -> None:
    with pytest.raises(ConfigError, match="dataset.of lists two or more datasets, each once"):
        params_from(tiny_params() | {"dataset": {"name": "both", "of": members}}, source="params.yaml")
