"""What every test gets: no telemetry, few threads, and a project folder with a ready model registry."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).parent.parent


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
    """Both ways to compute a convolution block; without a C++ compiler torch alone."""
    from kshot.backbones.layers.native import build_native, use_native_kernels

    if request.param == "native":
        if shutil.which("c++") is None:
            pytest.skip("no C++ compiler")
        build_native()
        assert use_native_kernels()
    name: str = request.param
    return name
