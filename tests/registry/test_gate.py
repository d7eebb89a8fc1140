"""The gate between two registered versions, with the real MLflow and, where episodes changed, a real evaluation."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file, save_file

from kshot.algorithms import AlgorithmConfig, TipAdapterConfig
from kshot.config import Params, load_params
from kshot.data.packed import INFO_FILE, MANIFEST_FILE
from kshot.errors import ModelError, StageError
from kshot.promotion.rule import PromotionSettings
from kshot.registry.gate import Outcome, decide_promotion
from kshot.stages import meta_train, task_pool
from kshot.tracking import LoggedFile, default_tracking_uri, fetch_model, register, version_with
from kshot.workspace import Workspace
from tests.tiny_project import tiny_params, write_project
from tests.tracking.toy_runs import model_files, toy_record

pytestmark = pytest.mark.usefixtures("smoke_test_here")
EPISODES = "e" * 64
N_EPISODES = 200


@pytest.fixture
def params(project: Path) -> Params:
    write_project(project, tiny_params())
    return load_params(project / "params.yaml")


def add_version(
    root: Path,
    key: str,
    *,
    accuracy: float,
    episodes: str = EPISODES,
    same_weights: bool = False,
    algorithm: AlgorithmConfig | None = None,
) -> int:
    """Register a version of `tiny` that answered this fraction right, with weights of its own."""
    folder = root / f"evaluation-{key}"
    folder.mkdir()
    setting = {"setting": "3w1s", "mode": "non-transductive"}
    result = setting | {"baselines": {"pixels": {"accuracy": 0.3, "ci95": 0.01}}, "calibration_error": 0.01}
    result |= {"title": "3-way 1-shot", "accuracy": accuracy, "ci95": 0.005, "unbeaten": []}
    metrics = {"dataset": "tiny", "seed": 1, "results": [result], "episodes_id": episodes}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "sections.html").write_text("<h2>Accuracy on held-out classes</h2>")
    spread = np.random.default_rng(1).normal(0, 0.02, N_EPISODES)
    rows = setting | {"episode": range(N_EPISODES), "accuracy": accuracy + spread}
    pd.DataFrame(rows).to_parquet(folder / "episodes.parquet")
    classes = setting | {"class": ["a", "b"], "group": ["one", "two"], "queries": [9, 9], "accuracy": accuracy}
    pd.DataFrame(classes).to_parquet(folder / "per_class.parquet")
    facts = root / "facts.json"
    found = {"name": "near duplicates", "passed": False, "found": "3 pairs", "needed": "at most 0"}
    facts.write_text(json.dumps({"checks": [found]}))
    record = toy_record(root)
    weights = 0.0 if same_weights else float(ord(key))
    model = model_files(root / f"run-{key}" / "model", root / "mlflow" / "model.py", algorithm, shift=weights)
    files = [LoggedFile(path=path, folder="evaluate") for path in sorted(folder.iterdir())]
    files.append(LoggedFile(path=facts, folder="validate"))
    files += [LoggedFile(path=root / "data/tiny" / name, folder="data") for name in (INFO_FILE, MANIFEST_FILE)]
    done = register(
        replace(
            record,
            model_name="tiny",
            dvc_lock_sha256=key * 64,
            files=(*record.files, *files),
            model=model,
            metrics={**record.metrics, "cost/adapt_ms": 1.5, "cost/classify_ms": 0.25, "cost/parameters": 1000.0},
        )
    )
    return done.version


def decided(root: Path, params: Params, version: int | None = None, **settings: Any) -> Outcome:
    promotion = PromotionSettings(**({"beat_baselines": False} | settings))
    return decide_promotion(
        root, replace(params, register=replace(params.register, promotion=promotion)), by="test", version=version
    )


def champion(root: Path) -> int | None:
    return version_with("tiny", "champion", root)


def tags(root: Path, version: int) -> Mapping[str, str]:
    return MlflowClient(default_tracking_uri(root)).get_model_version("tiny", str(version)).tags


def test_the_first_version_becomes_champion_and_is_not_decided_on_again(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    first = decided(project, params)
    assert (champion(project), str(first)) == (1, "version 1 promoted: first")
    again = decided(project, params)
    assert (again.decision, str(again)) == (None, "version 1 champion already")


def test_a_worse_version_is_refused_and_the_refusal_stored(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    decided(project, params)
    add_version(project, "2", accuracy=0.4)
    outcome = decided(project, params)
    assert (outcome.result, champion(project)) == ("refused", 1)
    assert str(outcome).startswith("version 2 refused: worse: -10.00 ± 0.00 points; gain at least -10.00 points")
    stored = tags(project, 2)
    assert (stored["promotion"], stored["promotion_reason"]) == ("worse", outcome.decision and outcome.decision.reason)
    client = MlflowClient(default_tracking_uri(project))
    run_id = str(client.get_model_version("tiny", "2").run_id)
    [file] = client.list_artifacts(run_id, "promotion")
    decision = json.loads(Path(client.download_artifacts(run_id, file.path)).read_text())
    assert (decision["champion"], decision["promote"], decision["by"]) == (1, False, "test")
    assert {check["name"] for check in decision["checks"]} == {"same episodes", "other weights", "gain"}


def test_a_better_version_is_promoted(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    decided(project, params)
    add_version(project, "2", accuracy=0.51)
    assert decided(project, params).result == "promoted"
    assert (champion(project), version_with("tiny", "previous", project)) == (2, 1)


def test_an_identical_run_is_no_difference_and_promotes_nothing(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5, same_weights=True)
    decided(project, params)
    add_version(project, "2", accuracy=0.5, same_weights=True)
    outcome = decided(project, params, required_gain=-0.1)
    assert outcome.decision is not None
    assert (outcome.decision.verdict, outcome.result, champion(project)) == ("no difference", "refused", 1)


def test_another_algorithm_on_the_same_weights_is_another_model(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5, same_weights=True)
    decided(project, params)
    add_version(project, "2", accuracy=0.6, same_weights=True, algorithm=TipAdapterConfig())
    models = [fetch_model(f"models:/tiny/{version}", project) for version in (1, 2)]
    assert len({model.weights_sha256 for model in models}) == 1
    assert (decided(project, params).result, champion(project)) == ("promoted", 2)


def test_a_dry_run_decides_and_moves_nothing(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    outcome = decided(project, params, mode="dry_run")
    assert (str(outcome), champion(project)) == ("version 1 dry run: first", None)
    assert tags(project, 1)["promotion"] == "first"


def test_switched_off_nothing_is_decided(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    assert str(decided(project, params, mode="off")) == "promotion is off"
    assert "promotion" not in tags(project, 1)


def test_where_approval_is_required_the_alias_waits_for_a_person(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    waiting = decided(project, params, approval="required")
    assert (waiting.result, champion(project)) == ("waits for approval", None)
    asking = replace(params.register, promotion=PromotionSettings(approval="required", beat_baselines=False))
    approved = decide_promotion(project, replace(params, register=asking), by="a person", version=1, approved=True)
    assert (approved.result, champion(project)) == ("promoted", 1)


def test_a_poisoned_version_is_refused_and_the_champion_goes_on(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    decided(project, params)
    add_version(project, "2", accuracy=0.6)
    path = fetch_model("models:/tiny/2", project).folder / "weights.safetensors"
    save_file({name: values * 0 for name, values in load_file(path).items()}, path)
    with pytest.raises(StageError, match="version 2 of tiny fails its smoke test"):
        decided(project, params)
    assert champion(project) == 1


def test_when_the_pools_changed_both_are_scored_on_the_new_ones(
    project: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    task_pool.run(params, Workspace(project))
    meta_train.run(params, Workspace(project))
    add_version(project, "1", accuracy=0.9)
    decided(project, params)
    add_version(project, "2", accuracy=0.1, episodes="f" * 64)
    capsys.readouterr()
    outcome = decided(project, params)
    said = capsys.readouterr().out
    assert "version 1 was scored on other episodes" in said and "version 2 was scored on other episodes" in said
    assert outcome.decision is not None and outcome.decision.difference is not None
    assert abs(outcome.decision.difference.mean) < 0.5, "scored anew, not by the files of their runs"


@pytest.mark.parametrize(("limit", "result"), [(1.0, "refused"), (2.0, "promoted")])
def test_a_version_that_adapts_too_slowly_is_refused(project: Path, params: Params, limit: float, result: str) -> None:
    add_version(project, "1", accuracy=0.5)
    outcome = decided(project, params, max_adapt_ms=limit)
    assert outcome.result == result
    assert ("adapting 1.50 ms, need at most 1.00 ms" in str(outcome)) == (result == "refused")


def test_what_is_not_there_is_named(project: Path, params: Params) -> None:
    with pytest.raises(ModelError, match="no registered model 'tiny'; known: none; next: kshot register"):
        decided(project, params)
    add_version(project, "1", accuracy=0.5)
    with pytest.raises(ModelError, match="tiny has no version 7; known: 1"):
        decided(project, params, version=7)
    shutil.rmtree(project / ".kshot" / "mlartifacts")
    with pytest.raises(ModelError, match="the files of .* cannot be fetched"):
        decided(project, params)
    assert champion(project) is None
