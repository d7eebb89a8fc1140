"""A subprocess whose lines are passed on while it runs, and which ends with the process that reads them."""

import codecs
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kshot.printing import printable

PROGRESS_EVERY_S = 2.0
_GRACE_S = 10.0
_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]"
)


def run_live(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> int:
    """Run to the end in a process group of its own; the exit code, negative for a signal.

    Whatever interrupts the reading (cancellation, Ctrl-C, an error) ends the whole group first:
    SIGTERM, and SIGKILL for what is left after ten seconds.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in lines_of(process.stdout.fileno()):
                on_line(line)
            return process.wait()
        finally:
            if process.poll() is None:
                _end_group(process)


def lines_of(descriptor: int) -> Iterator[str]:
    """Lines as they come, without empty ones and terminal escapes.

    Progress that redraws its line (carriage returns) is passed on at most every two seconds, and at its end.
    """
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    pending, told_at = "", -math.inf
    while chunk := os.read(descriptor, 65536):
        *lines, pending = (pending + decode(chunk)).split("\n")
        for line in lines:
            if text := _clean(line):
                yield text
        now = time.monotonic()
        if "\r" in pending and now - told_at >= PROGRESS_EVERY_S:
            told_at = now
            if text := _clean(pending):
                yield text
            pending = ""
    if text := _clean(pending):
        yield text


def _clean(line: str) -> str:
    """The line as a terminal would show it in the end."""
    return printable(_ESCAPES.sub("", line.rstrip("\r\n").rpartition("\r")[2]).rstrip().expandtabs())


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_S
        _signal_group(process, number)
        while _signal_group(process, 0) and time.monotonic() < deadline:
            time.sleep(0.05)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group; whether any process of it is left. The signal 0 only asks."""
    process.poll()  # a leader that ended counts as left until it is waited for
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
