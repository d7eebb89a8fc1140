"""The stack as it is started by make stack: real servers, in a folder of their own."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from infra.stack.programs import as_superuser
from infra.stack.settings import Stack, read_or_make_stack, read_stack
from infra.stack.supervision import is_running, state_of, supervisor_of
from kshot.errors import ConfigError
from kshot.project import stack_checks as module_of_checks
from kshot.project.bucket import ensure_bucket
from kshot.project.doctor import Finding
from kshot.project.remote import Remote, set_default_remote
from kshot.project.stack_checks import stack_checks
from tests.dvc_project import workspace, workspace_template
from tests.tools import lacking

__all__ = ["workspace", "workspace_template"]

_WAIT_S = 90


def command(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "infra.stack", what, "--folder", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if not (shutil.which("initdb") or [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]):
        lacking("PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="kshot-stack-") as folder:
        os.chmod(folder, 0o755)  # PostgreSQL's user has to get through
        place = Path(folder, "stack")
        command(place, "start")
        try:
            yield read_stack(place)
        finally:
            command(place, "stop")


def secrets_of(stack: Stack) -> list[str]:
    return [
        str(value)
        for name, value in vars(stack.kept).items()
        if not name.endswith("_port") and not name.endswith("_bucket_key")
    ]


def as_client(stack: Stack) -> tuple[str, str]:
    values = stack.client_environment()
    return values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]


def pid_of(stack: Stack, name: str) -> int:
    with supervisor_of(stack) as supervisor:
        return int(supervisor.getProcessInfo(name)["pid"])


def processes_of(stack: Stack) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(stack.folder).encode() in environment and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def until(condition: Any) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_servers_ask_for_a_password_and_know_the_clients(stack: Stack) -> None:
    models = f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/search"
    assert requests.get(models, timeout=10).status_code == 401
    assert requests.get(models, auth=("kshot", "another"), timeout=10).status_code == 401
    assert requests.get(models, auth=as_client(stack), timeout=10).status_code == 200
    of_prefect = f"{stack.prefect_url}/api/work_pools/kshot"
    assert requests.get(of_prefect, timeout=10).status_code == 401
    user, _, password = stack.client_environment()["PREFECT_API_AUTH_STRING"].partition(":")
    assert requests.get(of_prefect, auth=(user, password), timeout=10).json()["type"] == "process"
    ensure_bucket(stack.project_bucket)


def test_mlflow_answers_no_other_host(stack: Stack) -> None:
    strange = {"Host": "elsewhere.example"}
    answer = requests.get(
        f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/search",
        headers=strange,
        auth=as_client(stack),
        timeout=10,
    )
    assert (answer.status_code, "Invalid Host" in answer.text) == (403, True), answer.text


def test_no_secret_is_on_a_command_line_or_in_a_log_and_files_are_private(stack: Stack) -> None:
    secrets = secrets_of(stack)
    lines = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    logs = "".join(path.read_text(encoding="utf-8", errors="replace") for path in stack.logs.iterdir())
    assert logs
    for printed in (lines, logs):
        assert not [secret for secret in secrets if secret in printed]
    for name in ("kept.env", "client.env", "mlflow-auth.ini"):
        assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600
    client = stack.client_environment_file.read_text(encoding="utf-8")
    assert stack.kept.mlflow_admin_password not in client
    assert stack.kept.postgres_password not in client


def test_the_databases_are_apart(stack: Stack) -> None:
    of_prefect = stack.database("prefect", stack.kept.prefect_database_password, name="mlflow")
    with pytest.raises(OperationalError, match="permission denied"):
        create_engine(of_prefect).connect()
    engine = create_engine(as_superuser(stack))
    with engine.connect() as connection:
        databases = set(connection.scalars(text("SELECT datname FROM pg_database")))
    engine.dispose()
    assert {"mlflow", "mlflow_auth", "prefect"} <= databases


def test_a_server_that_is_killed_is_started_again_and_forgets_nothing(stack: Stack) -> None:
    made = requests.post(
        f"{stack.mlflow_url}/api/2.0/mlflow/experiments/create",
        json={"name": "kept"},
        auth=as_client(stack),
        timeout=10,
    )
    assert made.status_code == 200, made.text
    for name in ("s3", "postgres"):
        before = pid_of(stack, name)
        os.kill(before, signal.SIGKILL)
        until(lambda name=name, before=before: pid_of(stack, name) not in (0, before))
    until(lambda: state_of(stack, "postgres") == "RUNNING")
    ensure_bucket(stack.project_bucket)

    def is_there() -> bool:
        found = requests.get(
            f"{stack.mlflow_url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=kept",
            auth=as_client(stack),
            timeout=30,
        )
        return found.status_code == 200

    until(is_there)  # whose connections to the database are broken


def test_it_stops_whole_and_starts_again_with_what_it_kept(stack: Stack) -> None:
    kept = stack.kept
    command(stack.folder, "stop")
    assert not is_running(stack)
    until(lambda: not processes_of(stack))
    assert command(stack.folder, "stop").stdout.strip() == "the stack did not run"
    printed = command(stack.folder, "start").stdout
    assert re.search(rf"mlflow +{stack.mlflow_url}", printed)
    assert read_stack(stack.folder).kept == kept
    again = command(stack.folder, "start").stdout  # which changes nothing
    assert re.search(rf"mlflow +{stack.mlflow_url}", again)


def test_a_folder_without_a_stack_and_a_damaged_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need a stack that was started once; next: make stack"):
        read_stack(tmp_path)
    read_or_make_stack(tmp_path)
    path = tmp_path / "kept.env"
    path.write_text(path.read_text(encoding="utf-8").replace("S3_PORT=", "S3_PORT=x"), encoding="utf-8")
    with pytest.raises(ConfigError, match="need every port and key of the stack; next: put back a copy"):
        read_stack(tmp_path)


@pytest.fixture
def as_project(stack: Stack, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that uses the stack."""
    for name, value in stack.client_environment().items():
        monkeypatch.setenv(name, value)
    bucket = stack.project_bucket
    set_default_remote(workspace, Remote(name="s3", url=f"s3://{bucket.name}", endpoint_url=stack.s3_url))
    return workspace


def found(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in stack_checks(root)}


def test_the_doctor_finds_every_server_and_what_is_missing_on_it(as_project: Path, stack: Stack) -> None:
    seen = found(as_project)
    wrong = {name for name, finding in seen.items() if not finding.ok}
    assert wrong == {"deployments", "dead runs"}  # which nobody has made here
    assert seen["dead runs"].fix == "python -m flows.automations"
    assert seen["worker"].found == "stack"
    assert seen["mlflow version"].found == version("mlflow")
    assert not [secret for secret in secrets_of(stack) if secret in str(seen)]


def test_the_doctor_tells_a_wrong_key_from_a_server_that_is_away(
    as_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "kshot:another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another" * 4)
    seen = found(as_project)
    assert "answers 401" in seen["mlflow"].found
    assert seen["mlflow"].fix.startswith("correct the account and its password")
    assert "answers 401" in seen["prefect"].found
    assert "answered 403" in seen["bucket"].found
    assert "access_key_id and secret_access_key" in seen["bucket"].fix
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    seen = found(as_project)
    assert "nothing listens there" in seen["mlflow"].found
    assert "PREFECT_API_URL is not set" in seen["prefect"].found
    assert "AWS_ACCESS_KEY_ID not set" in seen["bucket"].found
    assert all(finding.fix for finding in seen.values() if not finding.ok)


def test_clocks_that_are_apart_and_another_version_are_named(as_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(module_of_checks.time, "time", lambda: now() - 120)
    monkeypatch.setattr(module_of_checks, "version", lambda package: "1.2.3")
    seen = found(as_project)
    assert re.match(r"\+1[12]\d s", seen["mlflow clock"].found)
    assert seen["mlflow clock"].fix == "set both clocks by NTP"
    assert seen["prefect version"].fix == "run prefect 1.2.3 there"
