"""What DVC knows, asked through its own commands; running stages and sending files is in `dvc.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.errors import StageError

_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A file or folder that is not what dvc.lock records: `state` is modified, deleted, new or not in cache.

    Of an output that is not in its cache DVC does not say whether it is as recorded.
    """

    stage: str
    path: str
    state: str
    is_output: bool

    def __str__(self) -> str:
        return f"{self.path}, which stage {self.stage} {'wrote' if self.is_output else 'read'}, is {self.state}"


def ask_dvc(root: Path, *arguments: str) -> str:
    """What `dvc ARGUMENT...` prints in `root`. Raises StageError, with DVC's error line, where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=root,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(f"dvc {' '.join(arguments)} failed: {error}; next: kshot doctor") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode} without an error"]
        message = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), lines[-1])
        raise StageError(f"dvc {' '.join(arguments)} failed: {message.strip()}; next: kshot doctor")
    return done.stdout


def changed_since_lock(root: Path, stages: Sequence[str]) -> tuple[Changed, ...]:
    """Everything that these stages read or wrote and that is not, in `root`, what dvc.lock records; one DVC process.

    Settings are left out: dvc.lock holds them as they were written, and a default that is spelled out is no change.
    """
    try:
        status: dict[str, list[Any]] = json.loads(ask_dvc(root, "--wait-for-lock", "status", "--json", *stages))
    except ValueError as error:
        raise StageError(f"dvc status printed no JSON ({error}); next: kshot doctor") from error
    return tuple(one for stage, entries in status.items() for one in _changed(stage, entries))


def _changed(stage: str, entries: list[Any]) -> Iterator[Changed]:
    for entry in entries:
        if not isinstance(entry, dict):  # "changed command"
            yield Changed(stage=stage, path="dvc.yaml", state=f"modified ({entry})", is_output=False)
            continue
        for kind, files in entry.items():
            for path, state in files.items():
                if path != "params.yaml":
                    yield Changed(stage=stage, path=path, state=str(state), is_output=kind == "changed outs")
