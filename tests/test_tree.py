"""What lies in the repository: text that people wrote, and nothing that a run left."""

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from tests.conftest import REPOSITORY

MADE_BY_A_RUN = {".ckpt", ".db", ".npy", ".npz", ".parquet", ".pkl", ".pt", ".pth", ".safetensors", ".so", ".sqlite"}
PICTURES = {".gif", ".jpg", ".png", ".svg", ".webp"}
LOCK = "requirements.lock"
LARGEST_BYTES = 300_000


def tracked_files() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if (REPOSITORY / name).is_file()]


def test_git_tracks_no_binary_file_but_pictures_of_the_documentation() -> None:
    def is_binary(name: str) -> bool:
        path = Path(name)
        picture = path.parts[0] == "docs" and path.suffix in PICTURES
        return not picture and (path.suffix in MADE_BY_A_RUN or b"\0" in (REPOSITORY / name).read_bytes())

    names = tracked_files()
    assert LOCK in names
    assert [name for name in names if is_binary(name)] == []


def test_git_tracks_no_large_file_but_the_lock() -> None:
    large = {name for name in tracked_files() if (REPOSITORY / name).stat().st_size > LARGEST_BYTES}
    assert large == {LOCK}


def test_a_store_that_nobody_named_is_not_made_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path}/mlflow-default.db"
    assert MlflowClient().search_registered_models() == []
    assert list(Path.cwd().iterdir()) == []
    assert (tmp_path / "mlflow-default.db").exists()


LEAVES_A_FILE = """
from pathlib import Path
def test_leaves_a_file() -> None:
    Path({path!r}).touch()
"""


@pytest.mark.parametrize("ci", ["", "true"])
def test_in_ci_a_run_that_leaves_a_file_in_the_tree_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    root = tmp_path / "repository"
    (root / "tests").mkdir(parents=True)
    for name in ("__init__.py", "conftest.py", "tools.py"):
        (root / "tests" / name).write_text((REPOSITORY / "tests" / name).read_text())
    (root / "tests" / "test_one.py").write_text(LEAVES_A_FILE.format(path=str(root / "left.txt")))
    (root / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    monkeypatch.setenv("CI", ci)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_one.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout
    assert (done.returncode, "the tests left left.txt" in done.stdout) == ((1, True) if ci else (0, False))
