"""Which Prefect API a flow started by hand talks to."""

import atexit
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.base import ServerType
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from kshot.errors import StageError
from kshot.servers import LOCALHOST, PATIENCE_S, answers, free_port, proxy_for, public, why_silent
from kshot.workspace import Workspace

_STOP_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 90.0  # a first start migrates its database on a cold disk


@contextmanager
def prefect_api(root: Path, report: Callable[[str], None]) -> Iterator[str]:
    """The URL of an API to use: the configured one, else that of `make ui`, else a temporary server's.

    Prefect could start its own temporary server, but imports the whole server into the flow's process
    for it, which doubles the start-up time, and leaves it running when the flow is killed.
    """
    if url := PREFECT_API_URL.value():
        check_configured()
        yield url
    elif url := running_ui(root):
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    else:
        report("starting a temporary Prefect server, some five seconds ...")
        url = _start_temporary_server(root)
        logging.getLogger("prefect.flow_runs").addFilter(_not_a_link)
        with temporary_settings({PREFECT_API_URL: url}):
            yield url


def check_configured() -> None:
    """Raise StageError where an API is configured and none answers; Prefect itself says so in a trace."""
    if not (url := PREFECT_API_URL.value()):
        return
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": PATIENCE_S}) as client,
        ):
            if error := client.api_healthcheck():
                raise error
            if client.server_type == ServerType.SERVER:
                client.api_version()  # asks for the key, as every other question does
    except Exception as error:  # every library below the client has its own
        raise StageError(
            f"PREFECT_API_URL is {public(url)}: {why_silent(error)}{proxy_for(url)}; need a Prefect API; "
            "next: start that server, correct its address and key, or unset PREFECT_API_URL: a run then has its own"
        ) from error


def running_ui(root: Path) -> str | None:
    """The API of the server that `make ui` runs on this workspace."""
    try:
        url, _, place = Workspace(root).prefect_address.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return None
    return url if place == str(root.resolve()) and answers(f"{url}/health") else None


@contextmanager
def running_ui_noted(root: Path, url: str) -> Iterator[None]:
    """While the block runs, `running_ui` of `root` is `url`; of a copy of `root` it is not."""
    note = Workspace(root).prefect_address
    note.write_text(f"{url}\n{root.resolve()}", encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def server_command(port: int) -> list[str]:
    """Runs a Prefect server on this machine only, which ends when the caller does."""
    server = ["prefect", "server", "start", "--host", LOCALHOST, "--port", str(port)]
    return [sys.executable, "-m", "kshot.runtime.lifeline", *server, "--log-level", "warning"]


def _start_temporary_server(root: Path) -> str:
    port = free_port()
    url = f"http://{LOCALHOST}:{port}/api"
    log = Workspace(root).logs / "prefect-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*server_command(port), "--no-ui"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the flow's to handle, which then still needs its API
            env={**os.environ, "PREFECT_API_URL": url},
        )
    atexit.register(_stop, server)  # not sooner: Prefect sends its last events while the interpreter ends
    _wait_until_healthy(url, server, log)
    return url


def _not_a_link(record: logging.LogRecord) -> bool:
    """False for the page of a run, which a server without pages does not have."""
    return not record.getMessage().startswith("View at ")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not answers(f"{url}/health"):
        if server.poll() is not None:
            raise StageError(f"the Prefect server ended at once with exit code {server.returncode}; next: read {log}")
        if time.monotonic() > deadline:
            raise StageError(f"the Prefect server gave no answer in {_START_TIMEOUT_S:.0f} s; next: read {log}")
        time.sleep(0.1)
