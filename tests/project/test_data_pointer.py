"""data.dvc in a clone whose remote is empty or lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from kshot.errors import ConfigError, StageError
from kshot.project.data_pointer import fetch_data, take_pointer, track_data
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


def test_a_pointer_is_taken_only_where_it_points_at_the_datasets(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    text = "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  hash: md5\n  path: data\n"
    assert take_pointer(workspace, text)
    assert workspace.data_pointer.read_text() == text
    assert not take_pointer(workspace, text)
    for wrong in (text.replace("path: data", "path: ../elsewhere"), "outs: 3", "- [", "{}"):
        with pytest.raises(ConfigError, match="data_pointer points at .*; need the text of a data.dvc.*; next: kshot"):
            take_pointer(workspace, wrong)
    assert workspace.data_pointer.read_text() == text
    assert [*tmp_path.iterdir()] == [workspace.data_pointer]
