"""Runs one driver in a process of its own, again while other processes disturb it."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence

from pydantic import TypeAdapter

from bench.drivers import Driver
from bench.measure import Measurement, Request
from bench.results import DISTURBED_SHARE

_TIMEOUT_S = 900.0
MAX_REPEATS = 3


class DriverError(Exception):
    """A driver that did not print a measurement; the message is its own line."""


def run_driver(driver: Driver, request: Request) -> Measurement:
    """Measure in a fresh process. Raises DriverError with the line that says why that failed."""
    if not driver.python.exists():
        raise DriverError("not installed; next: python -m bench.make_peers")
    return run_command([str(driver.python), "-m", driver.module], request)


def run_command(command: Sequence[str], request: Request, environment: Mapping[str, str] = os.environ) -> Measurement:
    """The measurement that `command REQUEST` prints."""
    try:
        done = subprocess.run(
            [*command, request.to_json()],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DriverError(f"no answer in {_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise DriverError(error_line(done.stderr) or f"exit code {done.returncode}")
    return TypeAdapter(Measurement).validate_json(done.stdout.splitlines()[-1])


def quietest(measure: Callable[[], Measurement], max_repeats: int = MAX_REPEATS) -> Measurement:
    """The first measurement that others left alone, or the least disturbed one after the last repeat."""
    best = measure()
    for _ in range(max_repeats):
        if best.others_share <= DISTURBED_SHARE:
            break
        best = min(best, measure(), key=lambda measurement: measurement.others_share)
    return best


def error_line(stderr: str) -> str:
    """The line of a trace or an installer's output that names the error, without addresses and folders."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower()]
    line = (named or lines or [""])[-1]
    return re.sub(r"(?<![\w.])/\S*/", "", re.sub(r"\w+://\S+", "URL", line))
