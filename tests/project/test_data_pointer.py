"""data.dvc in a clone whose remote is empty or lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from kshot.errors import StageError
from kshot.project.data_pointer import fetch_data, track_data
from kshot.workspace import Workspace


def _pointed_at(root: Path, n_files: int) -> Workspace:
    """A clone that has data.dvc alone: neither cache nor remote give the files."""
    (root / "data").mkdir()
    for number in range(n_files):
        (root / "data" / f"{number}").write_text(str(number))
    track_data(Workspace(root), pytest.fail)
    subprocess.run(["rm", "-r", "data", ".dvc/cache"], cwd=root, check=True)
    return Workspace(root)


def test_a_dataset_that_is_nowhere_is_not_dropped_from_the_pointer(workspace: Path) -> None:
    clone = _pointed_at(workspace, 4)
    with pytest.raises(StageError, match=r"data\.dvc points at 4 files that the remote does not give"):
        fetch_data(clone)


def test_a_remote_that_does_not_answer_is_named(workspace: Path) -> None:
    clone = _pointed_at(workspace, 4)
    local = "[core]\n    remote = s3\n['remote \"s3\"']\n    endpointurl = http://127.0.0.1:9\n"
    (workspace / ".dvc" / "config.local").write_text(local)
    with pytest.raises(
        StageError, match="endpointurl of the DVC remote s3 is http://127.0.0.1:9: nothing listens there"
    ):
        fetch_data(clone)


def test_a_dataset_as_small_as_the_glyphs_may_be_made_again(workspace: Path) -> None:
    fetch_data(_pointed_at(workspace, 3))
    assert not (workspace / "data").exists()


def test_what_was_pushed_comes_back(workspace: Path) -> None:
    (workspace / "data").mkdir()
    (workspace / "data/0").write_text("0")
    track_data(Workspace(workspace), pytest.fail)
    subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], cwd=workspace, check=True)
    subprocess.run(["rm", "-r", "data", ".dvc/cache"], cwd=workspace, check=True)
    fetch_data(Workspace(workspace))
    assert (workspace / "data/0").read_text() == "0"


def test_without_a_dvc_project_only_a_warning_is_given(tmp_path: Path) -> None:
    warnings: list[str] = []
    track_data(Workspace(tmp_path), warnings.append)
    assert len(warnings) == 1 and warnings[0].endswith("is not versioned; next: dvc init")
