"""Real processes: who ends when another one is killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kshot.runtime.lifeline import GUARDIAN_PID, die_with_pipeline
from tests.processes import wait_for_text, wait_until_gone

CHILD = """
import os, sys, time
from kshot.runtime import lifeline
getattr(lifeline, sys.argv[1])()
open("pid.new", "w").write(str(os.getpid()))
os.rename("pid.new", "pid")
time.sleep(600)
"""
SHELL_BETWEEN = "'{python}' child.py {function} & wait"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "child.py").write_text(CHILD)
    yield tmp_path
    for started in tmp_path.glob("pid"):
        try:
            os.kill(int(started.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def _start(folder: Path, function: str, **environment: str) -> subprocess.Popen[bytes]:
    """A shell that waits for the child; killing it leaves the child behind."""
    clean = {name: value for name, value in os.environ.items() if name not in (GUARDIAN_PID, "DVC_STAGE")}
    paths = {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = SHELL_BETWEEN.format(python=sys.executable, function=function)
    return subprocess.Popen(["sh", "-c", command], cwd=folder, env={**clean, **paths, **environment})


def test_a_process_ends_when_its_parent_is_killed(folder: Path) -> None:
    with _start(folder, "die_with_parent") as parent:
        child = int(wait_for_text(folder / "pid"))
        parent.kill()
    wait_until_gone(child)


def test_a_process_ends_when_its_guardian_is_killed_though_its_parent_lives(folder: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as guardian,
        _start(folder, "die_with_pipeline", **{GUARDIAN_PID: str(guardian.pid)}) as parent,
    ):
        child = int(wait_for_text(folder / "pid"))
        guardian.kill()
        wait_until_gone(child)  # before the guardian is waited for: a zombie is dead too
        parent.wait()


def test_a_process_whose_guardian_ended_before_it_started_ends(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as guardian:
        guardian.wait()
    with _start(folder, "die_with_parent", **{GUARDIAN_PID: str(guardian.pid)}) as parent:
        parent.wait()  # which waits for its child


def test_a_stage_under_dvc_ends_with_it(folder: Path) -> None:
    with _start(folder, "die_with_pipeline", DVC_STAGE="meta_train") as parent:
        child = int(wait_for_text(folder / "pid"))
        parent.kill()
    wait_until_gone(child)


def test_a_stage_started_by_hand_may_outlive_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GUARDIAN_PID, raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    threads = threading.active_count()
    die_with_pipeline()
    assert threading.active_count() == threads


def test_a_module_runs_with_its_own_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kshot.runtime.lifeline", "json.tool", "--compact"],
        input='{"a": [1, 2]}',
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )
    assert done.stdout == '{"a":[1,2]}\n'
