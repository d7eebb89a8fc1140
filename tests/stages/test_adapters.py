"""An adapter through the stages: trained on kept features, scored and served on items."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kshot.config import load_params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.errors import ConfigError
from kshot.evaluation.features import KeptItems
from kshot.evaluation.scoring import score_episodes
from kshot.model import load_model
from kshot.serving.classifier import FewShotClassifier
from kshot.stages import evaluate, meta_train, pretrain, task_pool
from kshot.workspace import Workspace
from tests.tiny_project import tiny_params, write_project


def params_of(adapter: str, algorithm: str = "protonet", freeze: Any = "all") -> dict[str, Any]:
    params = tiny_params()
    params["backbone"] |= {"freeze": freeze}
    params["pretrain"] = {"name": "supervised", "n_steps": 3, "validate_every": 3}
    params["meta_train"] |= {"algorithm": {"name": algorithm}, "initial": "pretrained", "adapter": {"name": adapter}}
    return params


def trained(root: Path, params: dict[str, Any]) -> Workspace:
    """The pretrained backbone is the one that params freeze, which is trained without being frozen."""
    torch.set_num_threads(1)
    workspace = Workspace(write_project(root, params))
    loaded = load_params(workspace.params)
    task_pool.run(loaded, workspace)
    unfrozen = root / "unfrozen.yaml"
    unfrozen.write_text(workspace.params.read_text().replace("freeze: all", "freeze: []"))
    pretrain.run(load_params(unfrozen), workspace)
    meta_train.run(loaded, workspace)
    return workspace


@pytest.mark.parametrize("algorithm", ["protonet", "anil", "maml", "ridge"])
def test_only_the_adapter_is_trained_and_the_model_answers_for_items(tmp_path: Path, algorithm: str) -> None:
    workspace = trained(tmp_path, params_of("linear", algorithm))
    given = load_file(workspace.pretrained_model / "weights.safetensors")
    found = load_file(workspace.model / "weights.safetensors")
    of_base = {name: name.replace("backbone.", "backbone.base.") for name in given if name.startswith("backbone.")}
    assert all(torch.equal(given[old], found[new]) for old, new in of_base.items())
    weight = found["backbone.adapter.weight"]
    gram = weight.T @ weight if len(weight) > weight.shape[1] else weight @ weight.T
    assert not torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)  # as it was before the training

    evaluate.run(load_params(workspace.params), workspace)
    assert json.loads((workspace.output("evaluate") / "metrics.json").read_text())["adapter"] == "linear"
    assert "with a linear adapter" in (workspace.output("evaluate") / "report.html").read_text()
    kept = [np.load(folder / "known.npy") for folder in workspace.features.iterdir()]
    assert len(kept) == 2 and all(known.any() for known in kept)  # of the untrained one, too
    model = load_model(workspace.model)
    items = model.item.example(4)
    assert len(FewShotClassifier(model).predict(items[:2], ["b", "a"], items[2:]).labels) == 2


def test_scores_on_kept_features_are_those_on_items(tmp_path: Path) -> None:
    workspace = trained(tmp_path, params_of("mlp"))
    dataset = PackedDataset.open(workspace.dataset("tiny"))
    params = load_params(workspace.params)
    pool = read_frozen(workspace.output("task_pool"), dataset, params.task_pool).test["3w1s"]
    gather = item_gather(dataset, torch.device("cpu"))
    learner = load_model(workspace.model).learner
    on_items = score_episodes(learner, pool.indices, gather)
    kept = score_episodes(learner, pool.indices, KeptItems(gather, dataset, tmp_path / "features"))
    np.testing.assert_array_equal(on_items.predicted, kept.predicted)
    np.testing.assert_allclose(on_items.confidence, kept.confidence, atol=1e-5)


def test_beside_a_backbone_that_is_trained_both_are(tmp_path: Path) -> None:
    workspace = trained(tmp_path, params_of("lora", freeze=[]))
    given = load_file(workspace.pretrained_model / "weights.safetensors")
    found = load_file(workspace.model / "weights.safetensors")
    assert any(not torch.equal(given[name], found[name.replace("backbone.", "backbone.base.")]) for name in given)
    assert found["backbone.adapter.layers.1.weight"].any()
    assert json.loads((workspace.output("meta_train") / "metrics.json").read_text())["steps"] == 8


def test_an_adapter_that_nothing_would_train_is_refused(tmp_path: Path) -> None:
    params = params_of("linear")
    params["meta_train"]["training"] = {"n_steps": 0}
    root = write_project(tmp_path, params)
    with pytest.raises(ConfigError, match="meta_train.adapter is linear and .*n_steps is 0.*next: set n_steps: 500"):
        load_params(root / "params.yaml")
