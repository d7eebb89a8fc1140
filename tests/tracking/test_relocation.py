"""A project folder that was copied or moved, with the real MLflow on SQLite."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kshot.tracking import (
    RunRecord,
    attach,
    default_tracking_uri,
    fetch_model,
    history,
    last_decision,
    move_champion,
    record_decision,
    register,
    version_with,
)

pytestmark = pytest.mark.usefixtures("smoke_test_here")


def promote(root: Path, version: int, expected: int | None) -> None:
    move_champion("toy", root, version=version, expected=expected, reason="better", by="test")


def second_run(record: RunRecord, root: Path) -> RunRecord:
    model = replace(record.model, code=root / "mlflow" / "model.py", folder=root / "model")
    return replace(record, root=root, model=model, dvc_lock_sha256="9" * 64, files=())


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file by its path, locks left out: they hold nothing."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", ["copy", "a copy, 100 % ä"])
def test_a_copy_registers_and_promotes_without_a_trace_in_the_original(
    record: RunRecord, tmp_path_factory: pytest.TempPathFactory, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(record)
    promote(record.root, 1, None)
    copy = Path(shutil.copytree(record.root, tmp_path_factory.mktemp("elsewhere") / name))
    before = hashes(record.root)
    capsys.readouterr()

    assert fetch_model("models:/toy@champion", copy).folder.is_relative_to(copy)
    assert capsys.readouterr().err.startswith(f"copied or moved from {record.root.as_uri()}: ")
    done = register(second_run(record, copy))
    record_decision("toy", done.version, copy, verdict="better", reason="better", decision={"why": "it is"})
    attach(done.mlflow_run_id, copy / "params.yaml", copy)
    promote(copy, 2, 1)

    assert capsys.readouterr().err == ""
    assert version_with("toy", "champion", copy) == 2
    assert last_decision(done.mlflow_run_id, copy) == {"why": "it is"}
    assert fetch_model("models:/toy@champion", copy).folder.is_relative_to(copy)
    client = MlflowClient(tracking_uri=default_tracking_uri(copy))
    assert str(record.root) not in str([client.get_run(done.mlflow_run_id), client.get_model_version("toy", "1")])
    assert hashes(record.root) == before
    assert version_with("toy", "champion", record.root) == 1


def test_a_moved_project_goes_on_with_its_registry(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> None:
    register(record)
    promote(record.root, 1, None)
    moved = record.root.rename(tmp_path_factory.mktemp("elsewhere") / "project")
    assert register(second_run(record, moved)).version == 2
    promote(moved, 2, 1)
    assert [move.version for move in history("toy", moved)] == [1, 2]
    assert not record.root.exists()
