"""Several trained models that answer as one, through the stages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.algorithms.ensemble import members_of
from kshot.config import load_params, params_from
from kshot.errors import ConfigError
from kshot.model import load_model
from kshot.stages import evaluate, meta_train, task_pool
from kshot.training import loop
from kshot.workspace import Workspace
from tests.served_accuracies import accuracies_served
from tests.tiny_project import tiny_params, write_project


def trained(root: Path, *, seed: int = 1, **meta_train_settings: Any) -> Workspace:
    torch.set_num_threads(1)
    params = tiny_params() | {"seed": seed}
    training = params["meta_train"]["training"] | {"n_steps": 6, "validate_every": 1, "patience": 10}
    params["meta_train"] |= {"training": training} | meta_train_settings
    root.mkdir()
    workspace = Workspace(write_project(root, params))
    loaded = load_params(workspace.params)
    task_pool.run(loaded, workspace)
    meta_train.run(loaded, workspace)
    return workspace


def weights_of(workspace: Workspace) -> list[dict[str, torch.Tensor]]:
    return [dict(member.state_dict()) for member in members_of(load_model(workspace.model).learner)]


@pytest.mark.parametrize("algorithm", ["protonet", "maml"])
def test_members_from_seeds_are_the_models_of_these_seeds(tmp_path: Path, algorithm: str) -> None:
    chosen = {"name": algorithm}
    together = trained(tmp_path / "three", algorithm=chosen, ensemble={"name": "seeds", "of": [2, 3]})
    alone = [trained(tmp_path / str(seed), algorithm=chosen, seed=seed) for seed in (1, 2, 3)]
    for member, (expected,) in zip(weights_of(together), map(weights_of, alone), strict=True):
        assert member.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in member.items())
    assert not any(together.checkpoints.rglob("step-*"))


def test_it_answers_by_the_mean_probability_and_is_scored_as_it_answers(tmp_path: Path) -> None:
    workspace = trained(tmp_path / "two", ensemble={"name": "seeds", "of": [2]})
    evaluate.run(load_params(workspace.params), workspace)
    metrics = json.loads((workspace.output("evaluate") / "metrics.json").read_text())
    assert metrics["members"] == 2
    assert "The mean probability of 2 models." in (workspace.output("evaluate") / "report.html").read_text()

    scored = [result["accuracy"] for result in metrics["results"]]
    assert scored == pytest.approx(accuracies_served(workspace), abs=1e-9)


@pytest.mark.parametrize("average", ["votes", "weights"])
def test_the_best_validations_of_one_training_make_an_ensemble(
    tmp_path: Path, average: str, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace = trained(tmp_path / "best", ensemble={"name": "best_k", "k": 2, "average": average})
    found = weights_of(workspace)
    (best,) = weights_of(trained(tmp_path / "one"))
    if average == "votes":
        assert len(found) == 2
        assert all(torch.equal(found[0][name], tensor) for name, tensor in best.items())
        assert not torch.equal(found[0]["backbone.convolutions.0.weight"], found[1]["backbone.convolutions.0.weight"])
    else:
        (mean,) = found
        second = weights_of(trained(tmp_path / "two", ensemble={"name": "best_k", "k": 2, "average": "votes"}))[1]
        for name in (name for name in mean if "population" not in name):
            torch.testing.assert_close(mean[name], (best[name] + second[name]) / 2)
        assert "weights averaged over 2 validations  meta_val accuracy" in capfd.readouterr().out


def test_a_training_cut_off_in_a_later_member_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path / "whole", ensemble={"name": "seeds", "of": [2]})
    steps = loop.training_step
    calls = 0

    def breaks(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 9:  # in the second member
            raise KeyboardInterrupt
        return steps(*arguments)

    monkeypatch.setattr(loop, "training_step", breaks)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", ensemble={"name": "seeds", "of": [2]})
    monkeypatch.setattr(loop, "training_step", steps)
    capfd.readouterr()
    workspace = Workspace(tmp_path / "cut")
    meta_train.run(load_params(workspace.params), workspace)
    said = capfd.readouterr().out
    assert "resuming from the checkpoint of step 6" in said and "resuming from the checkpoint of step 3" in said
    assert workspace.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"meta_train": {"ensemble": {"name": "seeds", "of": [1]}}}, "lists other seeds than seed, each once"),
        ({"meta_train": {"ensemble": {"name": "seeds", "of": [2, 2]}}}, "lists other seeds than seed, each once"),
        ({"seeds": [5], "meta_train": {"ensemble": {"name": "seeds", "of": [2]}}}, r"next: set seeds: \[\]"),
        ({"meta_train": {"ensemble": {"name": "best_k", "k": 1}}}, r"meta_train\.ensemble"),
        (
            {
                "pretrain": {"name": "supervised", "n_steps": 2},
                "meta_train": {"ensemble": {"name": "best_k"}, "initial": "pretrained", "training": {"n_steps": 0}},
            },
            "all its members would be the same; next: set n_steps: 600",
        ),
    ],
)
def test_what_makes_no_ensemble_is_refused(changes: dict[str, Any], line: str) -> None:
    params = tiny_params()
    params |= changes | {"meta_train": params["meta_train"] | changes["meta_train"]}
    with pytest.raises(ConfigError, match=line):
        params_from(params, source="here")
