"""Test-time augmentation through the stages: no part of the training, and a part of the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.summary import read_scores
from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.config import load_params
from kshot.model import load_model
from kshot.stages import evaluate, meta_train, pretrain, task_pool
from kshot.workspace import Workspace
from tests.served_accuracies import accuracies_served
from tests.tiny_project import tiny_params, write_project

TEST_TIME = {
    "support": {"views": ["mirrored"]},
    "query": {"views": ["mirrored"], "draws": 2, "augment": [{"name": "crop"}]},
}
NAMED = "support with mirrored; queries with mirrored, 2 draws of crop"


def run(root: Path, algorithm: str, test_time: Any, frozen: bool = False, adapter: str = "none") -> Workspace:
    torch.set_num_threads(1)
    params = tiny_params()
    params["pretrain"] = {"name": "supervised", "n_steps": 2, "validate_every": 2}
    params["meta_train"] |= {"algorithm": {"name": algorithm}, "initial": "pretrained", "adapter": {"name": adapter}}
    if test_time:
        params["meta_train"]["test_time"] = test_time
    workspace = Workspace(write_project(root, params))
    loaded = load_params(workspace.params)
    task_pool.run(loaded, workspace)
    pretrain.run(loaded, workspace)
    if frozen:
        params["backbone"]["freeze"] = "all"
        workspace.params.write_text(yaml.safe_dump(params))
        loaded = load_params(workspace.params)
    meta_train.run(loaded, workspace)
    evaluate.run(loaded, workspace)
    return workspace


@pytest.mark.parametrize(
    ("algorithm", "frozen", "adapter"),
    [("protonet", False, "none"), ("ridge", True, "none"), ("anil", True, "linear")],
)
def test_the_weights_stay_and_the_answers_are_those_that_were_scored(
    tmp_path: Path, algorithm: str, frozen: bool, adapter: str
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_copies = run(tmp_path / "with", algorithm, TEST_TIME, frozen, adapter)
    without = run(tmp_path / "without", algorithm, None, frozen, adapter)
    assert with_copies.weights.read_bytes() == without.weights.read_bytes()
    temperatures = [load_model(workspace.model).temperatures for workspace in (with_copies, without)]
    assert temperatures[0] != temperatures[1]

    metrics = json.loads((with_copies.output("evaluate") / "metrics.json").read_text())
    assert metrics["test_time"] == NAMED
    assert NAMED in (with_copies.output("evaluate") / "report.html").read_text()
    assert f"{algorithm}, {NON_TRANSDUCTIVE}; {NAMED}" in read_scores(with_copies.root).rows
    scored = [r["accuracy"] for r in metrics["results"] if r["mode"] == NON_TRANSDUCTIVE]
    assert scored == pytest.approx(accuracies_served(with_copies), abs=1e-9)
