"""The whole pipeline, as `make train` runs it, with the real Prefect, DVC and MLflow on a tiny dataset."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.copied_project import copied_project, environment, run_flow, start_flow
from tests.tiny_project import tiny_params, write_project


def workspace(root: Path, params: dict[str, Any]) -> Path:
    """A clone of the project with a tiny dataset and these params."""
    return copied_project(root, params, lambda copy: write_project(copy, params))


def versions(root: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{root}/.kshot/mlflow.db")
    return [version.version for version in client.search_model_versions("name = 'tiny'")]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_registers_a_champion_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    root = workspace(tmp_path, tiny_params())
    first = run_flow(root)
    assert "tiny version 1, new" in first and "version 1 promoted: first" in first
    lock = (root / "dvc.lock").read_bytes()
    assert len(list((root / ".kshot/dvc-remote").rglob("*"))) > 10
    second = run_flow(root)
    assert "tiny version 1, already registered" in second and "version 1 champion already" in second
    assert second.count("Completed('cached')") == 6
    assert (root / "dvc.lock").read_bytes() == lock
    assert len(versions(root)) == 1


def test_a_flow_killed_while_it_trains_is_finished_by_the_next_and_registers_one_version(tmp_path: Path) -> None:
    params = tiny_params()
    params["meta_train"]["training"] |= {"n_steps": 600, "validate_every": 600, "checkpoint_every_s": 0.2}
    root = workspace(tmp_path, params)
    process = start_flow(root, root / "killed.log")
    wait_for_checkpoint(root, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    output = run_flow(root)
    assert "resuming from the checkpoint of step" in output
    assert "tiny version 1, new" in output
    assert len(versions(root)) == 1


@pytest.mark.timeout(600)
def test_a_version_is_rebuilt_from_the_remote_and_a_lost_object_is_named(tmp_path: Path) -> None:
    root = workspace(tmp_path, tiny_params())
    run_flow(root)
    for path in ("data", "artifacts", ".dvc/cache"):
        shutil.rmtree(root / path)
    code, output = rerun(root, "--version", "1", "--from-scratch")
    assert (code, "equal to the bit: weights equal; episode results equal" in output) == (0, True), output
    assert (root / ".kshot/reruns/tiny-1/report.html").stat().st_size > 1000

    code, output = rerun(root, "--version", "2")
    assert code == 2 and "error: tiny has no version 2; known: 1" in output
    lost = next(path for path in (root / ".kshot/dvc-remote/files").rglob("*") if path.is_file())
    lost.unlink()
    code, output = rerun(root, "--version", "1")
    assert code == 1, output
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "dvc pull failed" in error and "need every file of the version in the remote" in error


def rerun(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "flows.rerun", *arguments],
        cwd=root,
        env=environment(root),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
    )
    return done.returncode, done.stdout


def test_bad_data_stops_the_flow_with_one_line_and_exit_2(tmp_path: Path) -> None:
    params = tiny_params()
    params["task_pool"]["meta_test"]["settings"] = [{"n_way": 3, "k_shot": 9}]
    root = workspace(tmp_path, params)
    log = root / "flow.log"
    assert start_flow(root, log).wait(timeout=240) == 2
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "images_per_class" in errors[0] and "5 classes short of images" in errors[0]
    assert not (root / "artifacts/task_pool").exists()
    assert not (root / ".kshot/mlflow.db").exists()


def wait_for_checkpoint(root: Path, process: subprocess.Popen[bytes]) -> None:
    while not list((root / ".kshot/checkpoints").glob("*/step-?????????")):
        assert process.poll() is None, (root / "killed.log").read_text()
        time.sleep(0.02)
