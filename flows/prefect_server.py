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

from prefect.settings import PREFECT_API_URL, temporary_settings

from kshot.errors import StageError
from kshot.project.servers import LOCALHOST, answers, free_port
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


def running_ui(root: Path) -> str | None:
    """The API of the server that `make ui` runs on this workspace."""
    try:
        url = ui_file(root).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return url if answers(f"{url}/health") else None


def ui_file(root: Path) -> Path:
    """Holds the API's URL while `make ui` runs."""
    return Workspace(root).prefect_address


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
