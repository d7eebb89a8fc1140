"""Which Python `make setup` takes: pyproject.toml alone says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "make_venv.sh"


def run(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SCRIPT), "environment", python]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def allow(folder: Path, versions: str) -> None:
    (folder / "pyproject.toml").write_text(f'[project]\nname = "toy"\nrequires-python = "{versions}"\n')


def test_a_python_that_pyproject_allows_is_taken(tmp_path: Path) -> None:
    minor = sys.version_info.minor
    allow(tmp_path, f">=3.{minor},<3.{minor + 1}")
    done = run(tmp_path, sys.executable)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "environment/bin/python").exists()
    assert run(tmp_path, sys.executable).stdout == "", "the second time it is there"


@pytest.mark.parametrize("shift", [1, -1])
def test_a_python_that_pyproject_does_not_allow_is_refused(tmp_path: Path, shift: int) -> None:
    minor = sys.version_info.minor + shift
    allow(tmp_path, f">=3.{minor},<3.{minor + 1}")
    done = run(tmp_path, sys.executable)
    assert done.returncode == 2
    assert f"found Python 3.{sys.version_info.minor}." in done.stderr
    assert f"need Python >=3.{minor},<3.{minor + 1}; next: install one" in done.stderr
    assert not (tmp_path / "environment").exists()


def test_a_range_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    allow(tmp_path, "~=3.11")
    done = run(tmp_path, shutil.which("sh") or "sh")
    assert done.returncode == 2
    assert done.stderr.startswith("error: found no line requires-python")


def test_the_range_of_this_project_can_be_read(tmp_path: Path) -> None:
    shutil.copyfile(SCRIPT.parents[1] / "pyproject.toml", tmp_path / "pyproject.toml")
    assert "need Python >=3." in run(tmp_path, "no-such-python").stderr
