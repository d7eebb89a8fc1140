import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kshot.tracking import RunRecord, default_tracking_uri, prepare_store
from tests.tools import lacking
from tests.tracking.toy_runs import toy_record


@pytest.fixture
def record(project: Path) -> RunRecord:
    return toy_record(project)


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=default_tracking_uri(project))


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a registry on each kind of database; `project` uses it."""
    if request.param == "sqlite":
        return default_tracking_uri(project)
    address: str = request.getfixturevalue("postgresql")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", (project / "files").as_uri())
    return prepare_store(project)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of an empty database on a PostgreSQL server of its own, which has to be installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    binaries = Path(found).parent if (found := shutil.which("initdb")) else installed[-1] if installed else None
    if binaries is None:
        lacking("PostgreSQL")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="kshot-pg") as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        data = f"{folder}/data"
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        for command in (
            [binaries / "initdb", "-D", data, "-U", "kshot", "-A", "trust"],
            [binaries / "pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start"],
        ):
            subprocess.run([*as_user, *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql://kshot@/postgres?host={folder}"
        finally:
            subprocess.run(
                [*as_user, binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"],
                check=True,
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
