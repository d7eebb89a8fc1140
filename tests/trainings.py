"""Trainings of a tiny project as the commands that people run, to be killed, stopped and run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kshot.config import load_params
from kshot.stages import task_pool
from kshot.workspace import Workspace
from tests.processes import wait_until_gone
from tests.tiny_project import tiny_params, write_project

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

# So many steps that a kill at the first checkpoint never comes after the last step.
LONG = {"n_steps": 400, "validate_every": 200, "patience": 10}


def project(root: Path, *, training: dict[str, Any] | None = None, **process: Any) -> Path:
    params = tiny_params()
    params["meta_train"]["training"] |= training or {}
    params["process"] |= process
    write_project(root, params)
    task_pool.run(load_params(root / "params.yaml"), Workspace(root))
    return root


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "artifacts/meta_train/model/weights.safetensors")


def assert_same_weights(root: Path, other: Path) -> None:
    found, expected = weights(root), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def train_command(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kshot", "train"],
        cwd=root,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_checkpoint(root: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list((root / ".kshot/checkpoints").glob("*/step-?????????")):
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint within two minutes")


def kill_all(process: subprocess.Popen[str]) -> None:
    """The command and its workers, which torchrun starts in sessions of their own."""
    running = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for pid in running:
        wait_until_gone(pid)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, in the order of their ranks."""
    commands = {pid: command_line(pid) for pid in descendants(process.pid)}
    trains = "kshot stage meta_train"
    return sorted(pid for pid, line in commands.items() if line.endswith(trains) and "torch.distributed" not in line)


def descendants(pid: int) -> list[int]:
    children = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
