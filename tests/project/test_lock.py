import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from kshot.project import lock as workspace
from kshot.project.lock import drop_dead_dvc_lock, hold_workspace


def test_a_second_run_waits_for_the_first_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_NEWS_EVERY_S", 0.05)
    (tmp_path / ".kshot").mkdir()
    waiting = threading.Event()
    news: list[str] = []

    def report(line: str) -> None:
        news.append(line)
        waiting.set()

    with FileLock(tmp_path / ".kshot/flow.lock"):
        second = threading.Thread(target=lambda: _enter(tmp_path, report))
        second.start()
        waiting.wait()
        assert not (tmp_path / "entered").exists()
    second.join()
    assert (tmp_path / "entered").exists()
    assert "another run" in news[0]


KILLED = """
import os
from pathlib import Path
from kshot.project.lock import hold_workspace
with hold_workspace(Path.cwd(), print):
    os.kill(os.getpid(), 9)
"""


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == -9
    _enter(tmp_path, pytest.fail)
    assert (tmp_path / "entered").exists()


@pytest.mark.parametrize("torn", ["", '{"write": {"a":', "[]", '{"write": {"a": 3}}'])
def test_a_torn_dvc_lock_is_removed(tmp_path: Path, torn: str) -> None:
    path = _rwlock(tmp_path, torn)
    drop_dead_dvc_lock(tmp_path)
    assert not path.exists()


def test_a_dvc_lock_of_a_number_that_another_program_has_now_is_removed(tmp_path: Path) -> None:
    path = _rwlock(tmp_path, json.dumps({"write": {"a": {"pid": os.getppid(), "cmd": "dvc repro"}}, "read": {}}))
    drop_dead_dvc_lock(tmp_path)
    assert not path.exists()


def test_the_lock_of_a_living_dvc_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "dvc"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dvc:
        assert dvc.stdout is not None
        dvc.stdout.readline()
        path = _rwlock(tmp_path, json.dumps({"read": {"a": [{"pid": dvc.pid, "cmd": "dvc repro"}]}}))
        drop_dead_dvc_lock(tmp_path)
        assert path.exists()
        dvc.communicate()


def _enter(root: Path, report: object) -> None:
    with hold_workspace(root, report):  # type: ignore[arg-type]
        (root / "entered").touch()


def _rwlock(root: Path, text: str) -> Path:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path
