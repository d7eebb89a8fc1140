"""Waiting for other processes; a test that waits in vain ends by the suite's time-out."""

import os
import time
from pathlib import Path


def wait_for_text(path: Path) -> str:
    """The text of a file that another process is about to rename into place."""
    while not path.exists():
        time.sleep(0.02)
    return path.read_text(encoding="utf-8")


def wait_until_gone(pid: int) -> None:
    """Until no such process is left, or only its exit code."""
    while _is_running(pid):
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not status.parent.parent.is_dir()  # gone meanwhile; or a system without /proc
