import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from kshot.errors import ModelError, StageError
from kshot.serving.classifier import FewShotClassifier
from kshot.tracking import (
    RunRecord,
    default_tracking_uri,
    fetch_model,
    flatten,
    prepare_store,
    register,
    serving_requirements,
)
from kshot.tracking.store import all_pages
from tests.tracking.toy_runs import call


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


# Registering


def test_registration_logs_everything_about_the_run(record: RunRecord, client: MlflowClient) -> None:
    done = register(record)

    assert (done.name, done.version, done.alias, done.created) == ("toy", 1, "challenger", True)
    run = client.get_run(done.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= {"seed": "1", "meta_train.algorithm.name": "protonet"}.items()
    assert run.data.metrics["meta_test/5w1s/accuracy"] == 0.5
    history = client.get_metric_history(done.mlflow_run_id, "meta_train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(1200)]
    assert {file.path for file in client.list_artifacts(done.mlflow_run_id)} == {
        "params.yaml",
        "model_card.md",
        "smoke_test.safetensors",
    }
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("dots", "d" * 36)
    version = client.get_model_version("toy", "1")
    assert version.description == "# toy\n"
    lineage = {"git_commit": "c0ffee", "dvc_lock_sha256": "a" * 64}
    assert version.tags.items() >= lineage.items()
    [output] = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert {metric.key: metric.value for metric in model.metrics or ()} == {"meta_test/5w1s/accuracy": 0.5}


def test_second_registration_of_a_run_returns_the_first_version(record: RunRecord, client: MlflowClient) -> None:
    first = register(record)
    second = register(record)
    assert second == replace(first, created=False)
    assert len(client.search_model_versions()) == 1
    assert len(client.search_runs(experiment_ids(client))) == 1


def test_registration_leaves_the_process_as_it_was(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    path = list(sys.path)
    register(record, default_tracking_uri(record.root))
    assert sys.path == path
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////nowhere/mlflow.db"


def test_every_new_version_is_the_challenger(record: RunRecord, client: MlflowClient) -> None:
    assert [register(replace(record, dvc_lock_sha256=key * 64)).alias for key in "12"] == ["challenger"] * 2
    assert client.get_registered_model("toy").aliases == {"challenger": 2}
    assert register(replace(record, dvc_lock_sha256="1" * 64)).alias is None
    assert client.get_registered_model("toy").aliases == {"challenger": 2}


@pytest.mark.parametrize("last_call", ["create_model_version", "set_registered_model_alias", "set_model_version_tag"])
def test_registration_that_died_is_completed_by_the_next_call(
    record: RunRecord, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, last_call: str
) -> None:
    register(replace(record, dvc_lock_sha256="0" * 64))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, last_call, dies)
        with pytest.raises(Killed):
            register(record)
    died_with = len(client.search_model_versions())

    done = register(record)

    assert (done.version, done.alias, done.created) == (2, "challenger", died_with == 1)
    assert len(client.search_model_versions()) == 2
    assert len(client.search_runs(experiment_ids(client))) == 2, "the finished run is used, not made again"
    assert client.get_registered_model("toy").aliases == {"challenger": 2}


def test_registration_prints_nothing(record: RunRecord, capfd: pytest.CaptureFixture[str]) -> None:
    """MLflow prints a warning where the input example cannot be served as JSON."""
    register(record)
    assert capfd.readouterr() == ("", "")


def test_long_model_card_is_cut_in_the_description_only(record: RunRecord, client: MlflowClient) -> None:
    card = "x" * 6000
    done = register(replace(record, model_card=card))
    description = client.get_model_version("toy", "1").description
    assert len(description) == 5000
    assert description.endswith("whole in the run's artifact model_card.md)\n")
    assert mlflow.artifacts.load_text(f"{client.get_run(done.mlflow_run_id).info.artifact_uri}/model_card.md") == card


def test_run_that_a_kill_left_open_is_closed_as_failed(record: RunRecord, client: MlflowClient) -> None:
    artifacts = record.root / ".kshot" / "mlartifacts"
    experiment = client.create_experiment("toy", artifact_location=artifacts.as_uri())
    left_open = client.create_run(experiment, tags={"dvc_lock_sha256": record.dvc_lock_sha256})

    done = register(record)

    assert client.get_run(left_open.info.run_id).info.status == "FAILED"
    assert done.mlflow_run_id != left_open.info.run_id
    assert done.created


def test_registration_waits_for_the_one_before_it(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kshot.tracking.store._LOCK_TIMEOUT_S", 0.01)
    with (
        FileLock(record.root / ".kshot" / "mlflow.lock"),
        pytest.raises(StageError, match=r"another process held .*mlflow\.lock"),
    ):
        register(record)
    assert register(record).created


def test_processes_that_start_at_once_migrate_a_new_database_once(tmp_path: Path) -> None:
    code = "import pathlib, sys, kshot.tracking; kshot.tracking.prepare_store(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, check=False), range(2)))
    assert [(one.returncode, one.stderr) for one in done] == [(0, ""), (0, "")]


def test_a_database_without_its_files_says_what_to_put_back(record: RunRecord) -> None:
    register(record)
    shutil.rmtree(record.root / ".kshot" / "mlartifacts")
    with pytest.raises(ModelError, match=r"files of models:/toy/1 cannot be fetched .* next: put back .kshot/mlartif"):
        fetch_model("models:/toy@challenger", record.root)


def test_refusal_of_the_server_is_one_line(record: RunRecord) -> None:
    with pytest.raises(StageError, match=r"^MLflow refused: .*; next: kshot doctor$"):
        register(replace(record, model_name="a/b"))


def dies(*arguments: Any, **keywords: Any) -> None:
    raise Killed


def experiment_ids(client: MlflowClient) -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments()]


# The registered model


LOAD_AND_PREDICT = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(json.load(sys.stdin))
import kshot
files = [module.__file__ for name, module in list(sys.modules.items()) if name.startswith("kshot.")]
numbers = answer.to_numpy()
print(json.dumps({"answer": numbers.tolist(), "dtype": str(numbers.dtype), "kshot": kshot.__file__, "files": files}))
"""


def test_model_loads_without_pickle_and_without_this_repository(record: RunRecord, tmp_path: Path) -> None:
    done = register(record)
    example = call((20, 12, 3), labels=(7, 7, 7, 3, 3), n_query=4)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": default_tracking_uri(record.root),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    environment.pop("PYTHONPATH", None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", LOAD_AND_PREDICT, f"models:/toy/{done.version}"],
        input=json.dumps({name: value.tolist() for name, value in example.items()}),
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["dtype"] == "float32"
    assert ".kshot/mlartifacts" in result["kshot"], "the source beside the model is used"
    expected = FewShotClassifier.load(record.model.folder).answer(example).to_numpy()
    np.testing.assert_allclose(result["answer"], expected, rtol=0, atol=1e-6)
    assert imported_packages(result["files"]) <= {line.partition("==")[0] for line in serving_requirements()}


def imported_packages(files: list[str]) -> set[str]:
    """The installed packages that the module level of these files imports."""
    names = set()
    for file in files:
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    by_name = packages_distributions()
    return {by_name[name][0].lower() for name in names & by_name.keys() - {"kshot"}}


def test_model_holds_safetensors_json_and_source_only(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # whatever the environment of this run says
    register(record)
    assert not sys.dont_write_bytecode
    files = {path.suffix for path in (record.root / ".kshot" / "mlartifacts" / "models").rglob("*") if path.is_file()}
    assert ".safetensors" in files
    assert not files & {".pkl", ".pickle", ".pt", ".pth", ".pyc", ".npy", ".npz"}


def test_requirements_name_exact_released_versions() -> None:
    requirements = serving_requirements()
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    assert all("==" in line and "+" not in line for line in requirements)


def test_damaged_weights_are_not_loaded(record: RunRecord) -> None:
    register(record)
    registered = fetch_model("models:/toy@challenger", record.root)
    weights = registered.folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="not the weights that were registered"):
        FewShotClassifier.load(registered.folder, weights_sha256=registered.weights_sha256)


# Finding a model


@pytest.mark.parametrize("name", ["models:/toy@challenger", "models:/toy/1"])
def test_registered_model_is_found_by_alias_and_by_version(record: RunRecord, name: str) -> None:
    register(record)
    found = fetch_model(name, record.root)
    assert (found.name, found.version, found.weights_sha256) == ("toy", 1, record.model.weights_sha256)
    assert {path.name for path in found.folder.iterdir()} == {"model.json", "weights.safetensors"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/other@champion", r"no registered model 'other'; known: toy; next: kshot register"),
        ("models:/toy@previous", r"toy has no alias 'previous'; known: challenger"),
        ("models:/toy/7", r"toy has no version 7; known: 1"),
        ("models:/toy", r"need models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/../toy/1", r"names no registered model"),
        ("models:/toy@champion#x", r"names no registered model"),
    ],
)
def test_unknown_model_is_refused_with_the_known_ones(record: RunRecord, name: str, message: str) -> None:
    register(record)
    with pytest.raises(ModelError, match=message):
        fetch_model(name, record.root)


def test_a_model_is_found_among_more_models_than_one_answer_of_the_registry_holds(
    record: RunRecord, client: MlflowClient
) -> None:
    others = [f"other-{number:03}" for number in range(101)]  # the registry answers with 100, in order of their names
    for other in others:
        client.create_registered_model(other)
    register(record)
    assert "toy" not in [model.name for model in client.search_registered_models()]
    assert fetch_model("models:/toy/1", record.root).version == 1
    with pytest.raises(ModelError, match=r"no registered model 'none'; known: 92 more, other-092, .*, other-100, toy;"):
        fetch_model("models:/none/1", record.root)


def test_a_search_goes_on_to_the_last_page(record: RunRecord, client: MlflowClient) -> None:
    client.create_registered_model("toy")
    for _ in range(5):
        client.create_model_version("toy", source=str(record.root / "model"))
    search = partial(client.search_model_versions, max_results=2)
    assert len(search("name = 'toy'")) == 2
    assert sorted(int(version.version) for version in all_pages(search, "name = 'toy'")) == [1, 2, 3, 4, 5]


def test_version_that_was_registered_by_other_means_is_refused(record: RunRecord, client: MlflowClient) -> None:
    client.create_registered_model("toy")
    client.create_model_version("toy", source=str(record.root / "model"))
    with pytest.raises(ModelError, match=r"toy version 1 has no tag weights_sha256"):
        fetch_model("models:/toy/1", record.root)


def test_search_before_the_first_run_names_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match=r"no model registry .* next: make demo"):
        fetch_model("models:/toy@champion", tmp_path)
    assert not (tmp_path / ".kshot").exists()


def test_server_address_goes_before_the_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri(project))
    assert prepare_store(project / "below") == default_tracking_uri(project)
    assert not (project / "below" / ".kshot" / "mlflow.db").exists()


def test_nested_settings_become_dotted_names() -> None:
    settings = {"seed": 1, "a": {"b": {"c": "text", "d": [{"n_way": 5}]}, "flag": True}}
    assert flatten(settings) == {"seed": "1", "a.b.c": "text", "a.b.d": '[{"n_way": 5}]', "a.flag": "true"}
