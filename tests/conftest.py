"""What every test gets: no telemetry, few threads, and a project folder with a ready model registry."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools import lacking

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).parent.parent
_BEFORE = pytest.StashKey[set[str]]()
_IGNORED = ("mlflow.db", "mlruns")  # git does not see these; a run may leave them all the same


def files_of_no_commit() -> set[str]:
    """Files in the repository that git neither tracks nor ignores, and what MLflow makes where nobody says where."""
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.splitlines()
    return {*listed, *(name for name in _IGNORED if (REPOSITORY / name).exists())}


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_BEFORE] = files_of_no_commit()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a run fails when it leaves a file in the tree; elsewhere somebody may be at work there."""
    if hasattr(session.config, "workerinput"):
        return
    left = files_of_no_commit() - session.config.stash[_BEFORE]
    if left and os.environ.get("CI"):
        print(
            f"\nerror: the tests left {', '.join(sorted(left))} in {REPOSITORY}; need none; next: write under tmp_path"
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _mlflow_store_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody says which store, MLflow makes one in the working directory: here in the test's own folder."""
    if utils := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        monkeypatch.setattr(utils, "DEFAULT_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow-default.db")


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database without a run. Making one takes seconds, copying it does not."""
    from kshot.tracking import prepare_store

    root = tmp_path_factory.mktemp("registry")
    prepare_store(root)
    return root / ".kshot" / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder: the model's code and card, and a registry of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / ".kshot").mkdir()
    shutil.copyfile(migrated_database, tmp_path / ".kshot" / "mlflow.db")
    shutil.copytree(REPOSITORY / "mlflow", tmp_path / "mlflow")
    return tmp_path


@pytest.fixture
def smoke_test_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smoke tests load the model in this process, which spares the five seconds that a fresh interpreter takes.

    For tests about something else; `tracking/test_smoke_test.py` has the real one.
    """
    from kshot.errors import StageError
    from kshot.tracking import ask_model, smoke_test

    def answer(arguments: list[str], folder: Path) -> None:
        try:
            ask_model.main(*map(Path, arguments[1:]))
        except Exception as error:
            raise StageError(str(error)) from error

    monkeypatch.setattr(smoke_test, "_run", answer)


@pytest.fixture(autouse=True)
def _torch_alone_again() -> Iterator[None]:
    """Whether native kernels run belongs to the process, and a stage that a test runs turns them on."""
    yield
    if native := sys.modules.get("kshot.backbones.layers.native"):
        native.use_native_kernels(False)


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest) -> str:
    """Both ways to compute a convolution block; the second needs a C++ compiler."""
    from kshot.backbones.layers.native import build_native, use_native_kernels

    if request.param == "native":
        if shutil.which("c++") is None:
            lacking("C++ compiler")
        build_native()
        assert use_native_kernels()
    name: str = request.param
    return name
