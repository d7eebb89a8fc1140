"""The clone in which a deployed run works, on real git and DVC."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from kshot.errors import ConfigError, StageError
from kshot.project import run_folder
from kshot.project.dvc import push, run_stage
from kshot.project.dvc_answers import ask_dvc
from kshot.project.git import git
from kshot.project.run_folder import enter_run_folder
from kshot.workspace import Workspace
from tests.dvc_project import REPOSITORY


@pytest.fixture
def project(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project whose dataset is in its remote; the process forgets afterwards what entering changed."""
    for name in ("KSHOT_RUNS", "KSHOT_REPOSITORY", "KSHOT_REVISION", "KSHOT_REMOTE_URL", "PREFECT__FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(run_folder, "run_live", lambda *_: 0)  # the kernels, which have tests of their own
    shutil.copyfile(REPOSITORY / "requirements.lock", workspace / "requirements.lock")
    (workspace / ".gitignore").write_text("/.kshot/\n/artifacts/\n/data\n")
    ask_dvc(workspace, "remote", "add", "--local", "--force", "--default", "shared", str(workspace.parent / "remote"))
    (workspace / "data").mkdir()
    (workspace / "data" / "dataset.json").write_text("{}")
    ask_dvc(workspace, "add", "data")
    ask_dvc(workspace, "push", "data.dvc")
    commit(workspace, "one")
    return workspace


def commit(root: Path, message: str) -> str:
    git(root, "add", "--all")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", message)
    return git(root, "rev-parse", "HEAD")


def entered(project: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_RUNS", str(project.parent / "runs"))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    return Path(enter_run_folder(str(project))["directory"])


def test_without_a_folder_for_runs_the_project_itself_is_worked_in(project: Path, tmp_path: Path) -> None:
    assert enter_run_folder(str(project)) == {"directory": str(project.resolve())}
    assert sys.path[0] == str(project / "src")
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(project / "src")
    with pytest.raises(ConfigError, match="no project at .*; need it there, or KSHOT_RUNS.*; next: start the worker"):
        enter_run_folder(str(tmp_path / "elsewhere"))


def test_each_run_has_a_clone_with_the_data_and_what_is_shared(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (entered(project, run, monkeypatch) for run in ("one", "two"))
    runs = project.parent / "runs"
    for root in (first, second):
        assert (root / "data" / "dataset.json").read_text() == "{}"
        assert Workspace(root).checkpoints.resolve() == runs / "checkpoints"
        assert ask_dvc(root, "config", "cache.dir").strip() == str(runs / "cache")
    assert first != second
    assert (runs / "cache").is_dir()


def test_what_one_run_has_made_the_next_finds_from_the_cache_and_from_the_remote(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    first = entered(project, "one", monkeypatch)
    for stage in ("check", "fit"):
        assert run_stage(stage, first, lines.append, may_pull=True).outcome == "ran"
    push(first, lines.append)
    second = entered(project, "two", monkeypatch)
    for stage in ("check", "fit"):
        assert run_stage(stage, second, lines.append, may_pull=True).outcome == "cached"
    shutil.rmtree(project.parent / "runs" / "cache")  # as on another worker
    third = entered(project, "three", monkeypatch)
    for stage in ("check", "fit"):
        assert run_stage(stage, third, lines.append, may_pull=True).outcome == "cached"
    made = [(root / "artifacts/fit/model/weights").read_text() for root in (first, second, third)]
    assert made == ["11"] * 3


def test_the_revision_is_that_of_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git(project, "rev-parse", "HEAD")
    (project / "input").write_text("2")
    commit(project, "two")
    assert (entered(project, "head", monkeypatch) / "input").read_text() == "2"
    monkeypatch.setenv("KSHOT_REVISION", before)
    assert (entered(project, "earlier", monkeypatch) / "input").read_text() == "1"
    monkeypatch.setenv("KSHOT_REVISION", "nowhere")
    with pytest.raises(StageError, match="git checkout failed: .*nowhere"):
        entered(project, "none", monkeypatch)


def test_a_worker_that_cannot_do_the_run_says_what_it_needs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = project / "requirements.lock"
    lock.write_text(lock.read_text().replace("\nnumpy==", "\nnumpy==9"))
    commit(project, "another numpy")
    with pytest.raises(ConfigError, match=r"numpy .*; need that of the revision.*; next: make setup at that revision"):
        entered(project, "one", monkeypatch)
    shutil.copyfile(REPOSITORY / "requirements.lock", lock)
    commit(project, "the same again")
    shutil.rmtree(project.parent / "remote")
    with pytest.raises(StageError, match=r"need the datasets of data.dvc there; next: dvc push"):
        entered(project, "two", monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="need a registry that outlives the run's folder; next: start the worker"):
        entered(project, "three", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="names no project; need one to clone; next: prefect deploy"):
        enter_run_folder("")


def test_old_clones_go_and_one_at_work_stays(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, at_work = (entered(project, run, monkeypatch) for run in ("old", "at-work"))
    for folder in (old, at_work):
        os.utime(folder, (time.time() - 8 * 24 * 3600,) * 2)
    with FileLock(Workspace(at_work).flow_lock):
        os.utime(at_work, (time.time() - 8 * 24 * 3600,) * 2)
        new = entered(project, "new", monkeypatch)
    assert (old.exists(), at_work.exists(), new.exists()) == (False, True, True)


def test_prefect_finds_the_pull_step_and_every_flow(project: Path) -> None:
    from kshot.yaml_file import read_yaml

    described = read_yaml(REPOSITORY / "prefect.yaml")
    (step,) = described["pull"]
    assert [*step] == [f"{run_folder.__name__}.{enter_run_folder.__name__}"]
    for deployment in described["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        words = subprocess.run(["grep", "-c", f"^def {name}(", REPOSITORY / path], capture_output=True, check=False)
        assert words.stdout.strip() == b"1", deployment["entrypoint"]
