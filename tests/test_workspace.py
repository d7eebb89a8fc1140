"""Which project folder a command works on."""

from pathlib import Path

import pytest

from kshot.errors import ConfigError
from kshot.workspace import Workspace
from tests.conftest import REPOSITORY


def project(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "dvc.yaml").touch()
    (root / "params.yaml").touch()
    return root


def test_a_subfolder_is_of_the_project_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path / "project")
    below = root / "data" / "photos"
    below.mkdir(parents=True)
    (root / ".kshot" / "run").mkdir(parents=True)
    (root / ".kshot" / "run" / "params.yaml").touch()  # the settings of a run, not a project
    for start in (root, below, root / ".kshot" / "run"):
        assert Workspace.find(start).root.resolve() == root
        monkeypatch.chdir(start)
        assert Workspace.find().root.resolve() == root


def test_of_a_project_in_another_one_the_inner_is_meant(tmp_path: Path) -> None:
    project(tmp_path / "outer")
    inner = project(tmp_path / "outer" / "copies" / "inner")
    (inner / "below").mkdir()
    assert Workspace.find(inner / "below").root == inner


def test_settings_that_were_put_among_the_presets_leave_a_project(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    (root / "params.yaml").unlink()
    (root / "presets").mkdir()
    (root / "below").mkdir()
    assert Workspace.find(root / "below").root == root


def test_without_a_project_the_folder_itself_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace.find().root == Path()


def test_a_clone_of_kshot_is_worked_on_by_its_own_source_only(tmp_path: Path) -> None:
    assert Workspace.find(REPOSITORY / "docs").root == REPOSITORY
    copy = project(tmp_path / "copy")
    (copy / "src" / "kshot").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=rf"kshot runs from .*, and {copy} has its own source; .* make -C {copy} setup"
    ):
        Workspace.find(copy / "src")
    assert Workspace.nearest(copy / "src").root == copy
