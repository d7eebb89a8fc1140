"""Starts and stops the programs of the stack through supervisord, which restarts one that ends."""

import getpass
import os
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from infra.stack.programs import PROGRAMS, Program, inherited
from infra.stack.settings import Stack
from kshot.errors import ConfigError, StageError

_SETTINGS = Path(__file__).with_name("supervisord.conf")
_WATCHES = ("mlflow-answers", "prefect-answers")
_UP, _DOWN = ("RUNNING", "STARTING"), ("STOPPED", "EXITED", "FATAL")
_START_TIMEOUT_S, _STOP_TIMEOUT_S = 180.0, 120.0  # first starts make and migrate databases
_NEWS_EVERY_S = 15.0
_POLL_S = 0.25
_LINES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Status:
    """Of a program: supervisord's word for it, and whether it answers as it should, or need not yet."""

    name: str
    state: str
    works: bool
    address: str
    log: Path


def start(stack: Stack, report: Callable[[str], None]) -> None:
    """Bring up what is not up yet, each once the ones before it work. Raises StageError for one that does not."""
    stack.logs.mkdir(exist_ok=True)
    _start_supervisord(stack)
    for program in PROGRAMS:
        if what := program.waits_for(stack):
            report(f"{program.name:9} waits for {what}")
            continue
        program.prepare(stack)
        if state_of(stack, program.name) not in _UP:
            _start(stack, program.name)
        _wait_until_working(stack, program, report)
        program.finish(stack)
        report(f"{program.name:9} {program.address(stack)}")
    for watch in _WATCHES:
        if state_of(stack, watch) not in _UP:
            _start(stack, watch)


def stop(stack: Stack) -> bool:
    """End every program, the last started first, then supervisord itself. False where it did not run."""
    if not is_running(stack):
        return False
    with supervisor_of(stack) as supervisor:
        supervisor.shutdown()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while stack.socket.exists():
        if time.monotonic() > deadline:
            raise StageError(f"supervisord did not end in {_STOP_TIMEOUT_S:.0f} s; next: read {stack.logs}")
        time.sleep(_POLL_S)
    return True


def statuses(stack: Stack) -> Iterator[Status]:
    is_up = is_running(stack)
    for program in PROGRAMS:
        waits = is_up and state_of(stack, program.name) not in _UP and _waits(stack, program)
        yield Status(
            name=program.name,
            state="WAITS" if waits else state_of(stack, program.name) if is_up else "STOPPED",
            works=waits or (is_up and program.works(stack)),
            address=program.address(stack),
            log=_log(stack, program),
        )


def _waits(stack: Stack, program: Program) -> bool:
    try:
        return bool(program.waits_for(stack))
    except OSError:  # what it asks does not answer, which is said of that one
        return False


def is_running(stack: Stack) -> bool:
    try:
        with supervisor_of(stack) as supervisor:
            supervisor.getState()
    except (OSError, xmlrpc.client.Error):
        return False
    return True


def _start_supervisord(stack: Stack) -> None:
    if is_running(stack):
        return
    _make_private(stack.socket.parent)
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", _SETTINGS],
        capture_output=True,
        text=True,
        check=False,
        env=inherited()
        | {
            "KSHOT_PYTHON": sys.executable,
            "KSHOT_STACK": str(stack.folder),
            "KSHOT_STACK_MLFLOW": stack.mlflow_url,
            "KSHOT_STACK_PREFECT": stack.prefect_url,
            "KSHOT_STACK_SOCKET": str(stack.socket),
            "KSHOT_STACK_USER": getpass.getuser(),
        },
    )
    if done.returncode != 0:
        raise StageError(f"supervisord ended with {done.returncode}: {' '.join((done.stderr or done.stdout).split())}")
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not is_running(stack):
        if time.monotonic() > deadline:
            raise StageError(f"supervisord gave no answer in {_START_TIMEOUT_S:.0f} s; next: read {stack.logs}")
        time.sleep(_POLL_S)


def _make_private(folder: Path) -> None:
    """It stands in the folder of everybody's temporary files."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise ConfigError(f"{folder} is not this user's alone; need a private folder; next: remove it, then make stack")


def _wait_until_working(stack: Stack, program: Program, report: Callable[[str], None]) -> None:
    began = news = time.monotonic()
    while not program.works(stack):
        now = time.monotonic()
        state = state_of(stack, program.name)
        if state in _DOWN or now - began > _START_TIMEOUT_S:
            raise StageError(
                f"{program.name} is {state} after {now - began:.0f} s; need it to answer; next: read "
                f"{_log(stack, program)}, which ends with: {_end_of(_log(stack, program))}"
            )
        if now - news > _NEWS_EVERY_S:
            report(f"{program.name:9} is starting, {now - began:.0f} s so far ...")
            news = now
        time.sleep(_POLL_S)


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return " / ".join(line.strip() for line in lines[-_LINES_SHOWN:]) or "nothing"


def _log(stack: Stack, program: Program) -> Path:
    return stack.logs / f"{program.name}.log"


def _start(stack: Stack, name: str) -> None:
    with supervisor_of(stack) as supervisor:
        supervisor.startProcess(name, False)


def state_of(stack: Stack, name: str) -> str:
    with supervisor_of(stack) as supervisor:
        return str(supervisor.getProcessInfo(name)["statename"])


@contextmanager
def supervisor_of(stack: Stack) -> Iterator[Any]:
    """supervisord's calls; the address is a form only, the transport knows the socket."""
    transport = SupervisorTransport(None, None, serverurl=f"unix://{stack.socket}")
    with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as server:
        yield server.supervisor
