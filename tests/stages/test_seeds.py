"""The same training from other seeds, with real files."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from kshot.config import load_params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.pools import FrozenPool
from kshot.evaluation.scoring import score_episodes
from kshot.model import load_model
from kshot.stages import meta_train, seeds, task_pool
from kshot.workspace import Workspace
from tests.tiny_project import tiny_params, write_project


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def weights_hash(model: Path) -> str:
    return sha256((model / "weights.safetensors").read_bytes()).hexdigest()


def test_another_seed_is_trained_like_the_first_and_scored_on_the_same_episodes(tmp_path: Path) -> None:
    root = write_project(tmp_path, tiny_params() | {"seeds": [7]})
    params, workspace = load_params(root / "params.yaml"), Workspace(root)
    task_pool.run(params, workspace)
    meta_train.run(params, workspace)
    seeds.run(params, workspace, "7")
    folder = root / "artifacts/seeds/7"
    assert weights_hash(folder / "model") != weights_hash(workspace.model)
    gather = item_gather(PackedDataset.open(root / "data/tiny"), torch.device("cpu"))
    written = json.loads((folder / "metrics.json").read_text())
    assert written["seed"] == 7
    for result in written["results"]:
        pool = FrozenPool.load(root / f"artifacts/task_pool/meta_test-{result['setting']}.safetensors")
        scores = score_episodes(load_model(folder / "model").learner, pool.indices, gather)
        assert result["accuracy"] == pytest.approx(scores.accuracy.mean())

    alone = write_project(tmp_path / "alone", tiny_params() | {"seed": 7})
    seventh = load_params(alone / "params.yaml")
    task_pool.run(seventh, Workspace(alone))
    meta_train.run(seventh, Workspace(alone))
    assert weights_hash(Workspace(alone).model) == weights_hash(folder / "model")
