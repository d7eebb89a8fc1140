"""Pretrained weights through the stages: as they are, frozen, and as what ordinary training begins with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kshot.backbones import Conv4Config
from kshot.config import load_params
from kshot.data.packed import PackedDataset
from kshot.data.weights import OfChannels
from kshot.errors import ConfigError, DataError
from kshot.ingest.weights import IMAGENET_MEAN, IMAGENET_STD, Brought, add_weights
from kshot.stages import evaluate, meta_train, pretrain, task_pool
from kshot.workspace import Workspace
from tests.tiny_project import tiny_params, write_project


def project(root: Path, algorithm: dict[str, Any], **changes: Any) -> Workspace:
    params = tiny_params() | changes
    params["backbone"] = {"name": "conv4", "width": 4, "weights": "mine", "freeze": "all"} | changes.get("backbone", {})
    params["meta_train"] = {"algorithm": algorithm, "initial": "pretrained", "training": {"n_steps": 0}}
    torch.set_num_threads(1)
    workspace = Workspace(write_project(root, params))
    task_pool.run(load_params(workspace.params), workspace)
    return workspace


def mine(
    workspace: Workspace, mean: OfChannels = (0.0, 0.0, 0.0), std: OfChannels = (1.0, 1.0, 1.0)
) -> dict[str, torch.Tensor]:
    item = PackedDataset.open(workspace.dataset("tiny")).item
    torch.manual_seed(7)
    tensors = {name: tensor + 0.1 for name, tensor in Conv4Config(width=4).build(item).state_dict().items()}
    brought = Brought(tensors=tensors, source="mine.pth", licence="MIT", mean=mean, std=std)
    add_weights(workspace.pretrained_weights("mine"), brought)
    return tensors


def backbone_of(folder: Path) -> dict[str, torch.Tensor]:
    state = load_file(folder / "weights.safetensors")
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("algorithm", ["ridge", "protonet", "simpleshot"])
def test_a_frozen_encoder_goes_through_the_stages_as_it_is(tmp_path: Path, algorithm: str) -> None:
    workspace = project(tmp_path, {"name": algorithm})
    tensors, params = mine(workspace), load_params(workspace.params)
    for stage in (pretrain, meta_train, evaluate):
        stage.run(params, workspace)
    for folder in (workspace.pretrained_model, workspace.model):
        found = backbone_of(folder)
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert json.loads((workspace.output("pretrain") / "metrics.json").read_text()) == {
        "name": "none",
        "weights": "mine",
    }
    baselines = json.loads((workspace.output("evaluate") / "metrics.json").read_text())["results"][0]["baselines"]
    heads = {f"pretrained, {head}" for head in ("prototypes", "simpleshot", "linear head", "ridge", "logistic", "lda")}
    own = set() if algorithm == "protonet" else {f"pretrained, {algorithm}"}
    assert baselines.keys() == {"pixel nearest centroid"} | heads - own
    assert list(workspace.features.iterdir())


def test_ordinary_training_begins_with_the_weights_and_leaves_frozen_layers_alone(tmp_path: Path) -> None:
    trained = {"name": "supervised", "n_steps": 2, "validate_every": 2, "learning_rate": 0.01}
    frozen = {"freeze": ["convolutions.0", "norms.0"]}
    workspace = project(tmp_path, {"name": "ridge"}, pretrain=trained, backbone=frozen)
    tensors = mine(workspace)
    pretrain.run(load_params(workspace.params), workspace)
    found = backbone_of(workspace.pretrained_model)
    same = {name for name in tensors if torch.equal(found[name], tensors[name])}
    assert {"convolutions.0.weight", "norms.0.weight", "norms.0.population_mean"} <= same
    assert not {"convolutions.1.weight", "convolutions.3.weight"} & same
    assert (found["convolutions.1.weight"] - tensors["convolutions.1.weight"]).abs().max() < 0.05


def test_weights_that_are_not_here_are_named_with_the_command(tmp_path: Path) -> None:
    workspace = project(tmp_path, {"name": "ridge"})
    with pytest.raises(DataError, match="no weights 'mine'; found: none; next: kshot weights add mine --from FILE"):
        pretrain.run(load_params(workspace.params), workspace)


def test_weights_that_nothing_would_use_are_refused(tmp_path: Path) -> None:
    workspace = project(tmp_path, {"name": "ridge"})
    params = yaml.safe_load(workspace.params.read_text())
    params["meta_train"]["initial"] = "random"
    workspace.params.write_text(yaml.safe_dump(params))
    with pytest.raises(
        ConfigError, match="backbone.weights is mine, and meta_train.initial is random.*next: set meta_tr"
    ):
        load_params(workspace.params)


def test_weights_for_standardised_pixels_are_refused_by_a_backbone_that_takes_them_as_they_are(tmp_path: Path) -> None:
    workspace = project(tmp_path, {"name": "ridge"})
    mine(workspace, IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(
        ConfigError, match=r"the weights mine expect pixels standardised by mean \(0.485, .*next: .*--mean 0,0,0 --std"
    ):
        pretrain.run(load_params(workspace.params), workspace)
    assert not workspace.output("pretrain").exists()


def test_drop_blocks_change_ordinary_training_and_are_the_same_again(tmp_path: Path) -> None:
    found = {}
    for name, rate in (("none", 0.0), ("some", 0.3), ("again", 0.3)):
        trained = {"name": "supervised", "n_steps": 2, "validate_every": 2}
        backbone = {"name": "resnet12", "widths": [4, 4, 4, 4], "drop_rate": rate, "drop_block": 1}
        params = tiny_params() | {"backbone": backbone, "pretrain": trained}
        torch.set_num_threads(1)
        workspace = Workspace(write_project(tmp_path / name, params))
        task_pool.run(load_params(workspace.params), workspace)
        pretrain.run(load_params(workspace.params), workspace)
        found[name] = (workspace.pretrained_model / "weights.safetensors").read_bytes()
    assert found["some"] == found["again"] != found["none"]
