"""One run of a workspace at a time, also after one was killed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kshot.workspace import Workspace

_NEWS_EVERY_S = 10.0


@contextmanager
def hold_workspace(root: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the workspace `root`: a second run waits here. The lock of a killed run is free."""
    path = Workspace(root).flow_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_NEWS_EVERY_S)
        except Timeout:
            report("another run of this workspace is going on; waiting for it to end ...")
    try:
        drop_dead_dvc_lock(root)
        yield
    finally:
        lock.release()


def drop_dead_dvc_lock(root: Path) -> None:
    """Remove DVC's list of who reads and writes which file when it is damaged, or names no living DVC.

    DVC writes the list in place, so a kill can damage it. DVC also mistakes a process that has the same number by now
    for the one that was killed, which is likely after a restart of a container.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        holders = json.loads(path.read_text(encoding="utf-8"))
        writers = list(holders.get("write", {}).values())
        readers = [reader for entry in holders.get("read", {}).values() for reader in entry]
        if any(_may_be_dvc(int(holder["pid"])) for holder in writers + readers):
            return
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # torn
    path.unlink(missing_ok=True)


def _may_be_dvc(pid: int) -> bool:
    try:
        return b"dvc" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self/cmdline").exists()  # no such process, or no /proc to ask
    except PermissionError:
        return True
