"""Learners on the features of ordinary training, from the stage that trains these to a served model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from kshot.algorithms import AlgorithmConfig
from kshot.algorithms.answering import NON_TRANSDUCTIVE, normalization_modes
from kshot.algorithms.learner import Problem, TransferLearner
from kshot.config import load_params
from kshot.episodes.episode import EpisodeShape
from kshot.errors import ConfigError
from kshot.evaluation.scorecard import lead_in
from kshot.model import load_model
from kshot.serving.classifier import FewShotClassifier
from kshot.stages import evaluate, meta_train, pretrain, task_pool
from kshot.workspace import Workspace
from tests.tiny_project import tiny_params, write_project
from tests.toy_episodes import LinearBackbone

PROBLEM = Problem(train_shape=EpisodeShape(n_way=3, k_shot=1, n_query=2), n_train_classes=3)
CONFIGS = [config() for config in get_args(get_args(AlgorithmConfig)[0])]
NAMES = [config.name for config in CONFIGS if isinstance(config.build(LinearBackbone(), PROBLEM), TransferLearner)]


def params_of(algorithm: str, **settings: Any) -> dict[str, Any]:
    params = tiny_params()
    params["pretrain"] = {"name": "supervised", "n_steps": 3, "validate_every": 3}
    params["meta_train"] = {
        "algorithm": {"name": algorithm} | settings,
        "initial": "pretrained",
        "training": {"n_steps": 0},
    }
    return params


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = write_project(tmp_path_factory.mktemp("pretrained"), params_of("ridge"))
    loaded = load_params(root / "params.yaml")
    task_pool.run(loaded, Workspace(root))
    pretrain.run(loaded, Workspace(root))
    return root


def trained(pretrained: Path, root: Path, algorithm: str, **settings: Any) -> Path:
    torch.set_num_threads(1)
    shutil.copytree(pretrained, root)
    (root / "params.yaml").write_text(yaml.safe_dump(params_of(algorithm, **settings)))
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    return root


@pytest.mark.parametrize("algorithm", NAMES)
def test_without_a_step_the_pretrained_backbone_is_scored_and_served(
    pretrained: Path, tmp_path: Path, algorithm: str
) -> None:
    root = trained(pretrained, tmp_path / "project", algorithm)
    evaluate.run(load_params(root / "params.yaml"), Workspace(root))
    given = load_file(root / "artifacts/pretrain/pretrained/weights.safetensors")
    found = load_file(root / "artifacts/meta_train/model/weights.safetensors")
    of_backbone = {name for name in given if name.startswith("backbone.")}
    assert found.keys() - of_backbone <= {"centre", "learning_rate"}
    assert all(torch.equal(found[name], given[name]) for name in of_backbone)

    metrics = json.loads((root / "artifacts/meta_train/metrics.json").read_text())
    history = pd.read_parquet(root / "artifacts/meta_train/history.parquet")
    assert (metrics["steps"], metrics["best_step"], metrics["stopped_early"]) == (0, 0, False)
    assert history["val_accuracy"].tolist() == [metrics["best_val_accuracy"]]
    evaluation = json.loads((root / "artifacts/evaluate/metrics.json").read_text())
    modes = normalization_modes(load_model(root / "artifacts/meta_train/model").learner)
    assert {result["mode"] for result in evaluation["results"]} == set(modes)
    page = (root / "artifacts/evaluate/report.html").read_text()
    assert "No step was taken" in page
    heads = {name for name in evaluation["results"][0]["baselines"] if name.startswith("pretrained, ")}
    need_not_be_beaten = set(evaluation["pretrained"].get("alternatives", []))
    assert need_not_be_beaten == (set() if algorithm == "finetune" else heads)
    assert all(need_not_be_beaten.isdisjoint(result["unbeaten"]) for result in evaluation["results"])
    lead = lead_in(evaluation)
    assert lead is not None
    of_served = [result for result in evaluation["results"] if result["mode"] == NON_TRANSDUCTIVE]
    leads = [result["accuracy"] - result["baselines"][lead.over]["accuracy"] for result in of_served]
    assert lead.difference.mean == pytest.approx(sum(leads) / len(leads))
    first_line = page.partition('<p class="words">')[2].partition("</p>")[0]
    assert (f"{lead.over}) is ahead of {algorithm}" in first_line) == (
        lead.difference.mean < -lead.difference.half_width
    )

    model = load_model(root / "artifacts/meta_train/model")
    items = model.item.example(4)
    answer = FewShotClassifier(model).predict(items[:3], ["b", "a", "b"], items[3:])
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)


def test_the_centre_is_that_of_the_pretrained_features(pretrained: Path, tmp_path: Path) -> None:
    root = trained(pretrained, tmp_path / "project", "simpleshot")
    assert float(load_file(root / "artifacts/meta_train/model/weights.safetensors")["centre"].abs().sum()) > 0


def test_the_learning_rate_that_is_kept_is_the_best_on_meta_val(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trained(pretrained, tmp_path / "project", "finetune", learning_rates=[0.0, 0.01, 1.0])
    lines = re.findall(r"with (\S+)  meta_val accuracy (\S+)%", capsys.readouterr().out)
    assert [rate for rate, _ in lines] == ["0", "0.01", "1"]
    best, _ = max(lines, key=lambda line: float(line[1]))
    found = load_file(root / "artifacts/meta_train/model/weights.safetensors")["learning_rate"]
    assert float(found) == pytest.approx(float(best))


def test_a_learner_of_episodes_needs_a_step(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_steps is 0; protonet is trained on episodes .*; next: set n_steps: 600"):
        trained(pretrained, tmp_path / "project", "protonet")
