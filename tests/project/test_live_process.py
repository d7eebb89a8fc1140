import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kshot.project.live_process import lines_of, run_live
from tests.processes import wait_until_gone

IGNORES_TERM = """
import os, signal, time
signal.signal(15, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def _lines(content: bytes) -> list[str]:
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    try:
        return list(lines_of(reader))
    finally:
        os.close(reader)


def test_lines_come_without_empty_ones_and_without_terminal_escapes() -> None:
    assert _lines(b"\x1b[1mone\x1b[0m\n\n  two\r\n\x1b]0;title\x07three\x1b(") == ["one", "  two", "three("]


def test_letters_that_turn_the_direction_of_writing_are_shown_as_escapes() -> None:
    assert _lines("gnp.\u202etxt\n\tmodified\n".encode()) == [r"gnp.\u202etxt", "        modified"]


def test_broken_text_is_shown_not_raised() -> None:
    assert _lines(b"a\xff\xe4\xb8\n") == ["a\ufffd\ufffd"]


def test_redrawn_progress_is_told_by_its_last_state() -> None:
    assert _lines(b"\r1%\r2%\r3%\r100%\ndone\n") == ["100%", "done"]


def test_much_redrawn_progress_is_told_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    reader, writer = os.pipe()
    lines = lines_of(reader)
    os.write(writer, b"\rstep 1")
    first = next(lines)
    for step in range(2, 50):
        os.write(writer, f"\rstep {step}".encode())
    os.write(writer, b"\nend\n")
    os.close(writer)
    assert [first, *lines] == ["step 1", "step 49", "end"]
    os.close(reader)


def test_the_exit_code_is_handed_on() -> None:
    assert run_live([sys.executable, "-c", "raise SystemExit(7)"], Path.cwd(), os.environ, print) == 7


def test_an_error_while_listening_ends_even_what_ignores_the_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {IGNORES_TERM!r}]).wait()"
    heard: list[str] = []

    def fail(line: str) -> None:
        heard.append(line)
        raise RuntimeError("the listener broke")

    monkeypatch.setattr("kshot.project.live_process._GRACE_S", 0.2)
    with pytest.raises(RuntimeError, match="the listener broke"):
        run_live([sys.executable, "-c", script], tmp_path, os.environ, fail)
    wait_until_gone(int(heard[0]))


CHILD = """
import signal, sys, time
signal.signal(15, lambda *_: (open("ended", "w").close(), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""
LISTENER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs deaf to it
import os, sys
from pathlib import Path
from kshot.project.live_process import run_live
run_live([sys.executable, "-c", sys.argv[1]], Path.cwd(), os.environ, lambda line: Path("heard").touch())
"""


def test_an_interrupted_listener_lets_the_command_end_in_order(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LISTENER, CHILD]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "heard").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
    assert (tmp_path / "ended").exists()
