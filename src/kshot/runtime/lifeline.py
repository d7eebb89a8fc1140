"""Processes that end with the one that started them.

A flow runs a stage through DVC, and DVC through a shell. If the flow is killed outright, none of
them notices: training would go on and write beside the next run. So a stage watches its own ancestors.
"""

import os
import runpy
import select
import signal
import sys
import threading
import time

GUARDIAN_PID = "KSHOT_GUARDIAN_PID"  # the flow process; a stage that DVC starts inherits it
_PIPELINE = (GUARDIAN_PID, "DVC_STAGE", "TORCHELASTIC_RUN_ID")  # DVC sets it for a stage, torchrun for a worker
_CHECK_EVERY_S = 0.5


def die_with_parent() -> None:
    """From now on, kill this process within a second of its parent or its guardian ending.

    The guardian is the process named by KSHOT_GUARDIAN_PID, where that is set. Works from any thread;
    nothing is cleaned up, as in any kill: files must be written whole and renamed into place.
    """
    parent = os.getppid()
    guardian = int(os.environ.get(GUARDIAN_PID) or 0) or None
    threading.Thread(target=_watch, args=(parent, guardian), name="lifeline", daemon=True).start()


def die_with_pipeline() -> None:
    """`die_with_parent` for what a flow, DVC or torchrun runs; a command started by hand may outlive its shell."""
    if any(name in os.environ for name in _PIPELINE):
        die_with_parent()


def _watch(parent: int, guardian: int | None) -> None:
    handle = _open(guardian) if guardian is not None else None
    while os.getppid() == parent and (guardian is None or _is_alive(guardian, handle)):
        time.sleep(_CHECK_EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _open(pid: int) -> int | None:
    """A handle that stays with this process even if its number is used again; None where there are no such handles."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return None


def _is_alive(pid: int, handle: int | None) -> bool:
    if handle is not None:
        ended, _, _ = select.select([handle], [], [], 0)
        return not ended
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main() -> None:
    """`python -m kshot.runtime.lifeline MODULE ARGUMENT...`: run a module like `python -m`, dying with the parent."""
    die_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
