"""Trainings of two processes, killed and stopped at drawn moments, end with the weights of an unbroken one."""

import os
import random
import re
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from kshot.config import load_params
from kshot.stages import meta_train
from kshot.workspace import Workspace
from tests.faults.full import slow, times
from tests.processes import wait_until_gone
from tests.trainings import (
    LONG,
    assert_same_weights,
    command_line,
    descendants,
    kill_all,
    project,
    train_command,
    wait_for_checkpoint,
    workers_of,
)

_LONGER = LONG | {"checkpoint_every_s": 0.1}
_SPREAD_S = 0.5  # a kill comes up to so long after the first checkpoint


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = project(tmp_path_factory.mktemp("unbroken"), training=_LONGER)
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    return root


@pytest.mark.parametrize("number", range(times(2, 200)))
def test_a_killed_worker_costs_one_restart_and_no_bit(tmp_path: Path, unbroken: Path, number: int) -> None:
    draw = random.Random(number)
    root = project(tmp_path, n_processes=2, training=_LONGER)
    process = train_command(root)
    wait_for_checkpoint(root)
    time.sleep(draw.uniform(0, _SPREAD_S))
    workers = workers_of(process)
    os.kill(workers[number % 2], signal.SIGKILL)
    killed = time.monotonic()
    assert process.stdout is not None
    lines = []
    resumed_after = timedelta()
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if "resuming from the checkpoint of step" in line:
                resumed_after = timedelta(seconds=time.monotonic() - killed)
    output = "".join(lines)
    assert process.wait() == 0, output
    assert len(re.findall("resuming from the checkpoint of step", output)) == 1, output
    assert_same_weights(root, unbroken)
    print(f"KILL {number} rank {number % 2}: resumed after {resumed_after.total_seconds():.1f} s")


@pytest.mark.parametrize("number", range(times(1, 20)))
def test_all_processes_killed_and_run_again_the_weights_are_the_same(
    tmp_path: Path, unbroken: Path, number: int
) -> None:
    root = project(tmp_path, n_processes=1 + number % 2, training=_LONGER)
    process = train_command(root)
    wait_for_checkpoint(root)
    time.sleep(random.Random(number).uniform(0, _SPREAD_S))
    kill_all(process)
    again = train_command(root)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert_same_weights(root, unbroken)


def test_no_worker_outlives_the_agent_that_started_it_nor_writes_another_checkpoint(tmp_path: Path) -> None:
    root = project(tmp_path, n_processes=2, training=LONG | {"n_steps": 100_000, "validate_every": 100_000})
    process = train_command(root)
    wait_for_checkpoint(root)
    workers = workers_of(process)
    (agent,) = (pid for pid in descendants(process.pid) if "torch.distributed" in command_line(pid))
    os.kill(agent, signal.SIGKILL)
    for pid in workers:
        wait_until_gone(pid)
    written = sorted(path.name for path in (root / ".kshot/checkpoints").glob("*/step-*"))
    process.communicate()
    assert sorted(path.name for path in (root / ".kshot/checkpoints").glob("*/step-*")) == written


def test_a_second_training_of_the_same_stage_is_refused_and_the_first_goes_on(tmp_path: Path, unbroken: Path) -> None:
    root = project(tmp_path, training=_LONGER)
    first = train_command(root)
    wait_for_checkpoint(root)
    second = train_command(root)
    refused, _ = second.communicate()
    assert second.returncode == 1
    assert "error: another process is in the stage meta_train of" in refused and "next: wait for it to end" in refused
    output, _ = first.communicate()
    assert first.returncode == 0, output
    assert_same_weights(root, unbroken)


@slow
def test_a_stopped_worker_is_replaced_after_the_time_out_of_its_group(tmp_path: Path, unbroken: Path) -> None:
    root = project(tmp_path, n_processes=2, training=_LONGER)
    process = train_command(root)
    wait_for_checkpoint(root)
    stopped = workers_of(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        os.kill(stopped, signal.SIGCONT) if Path(f"/proc/{stopped}").exists() else None
    assert process.returncode == 0, output
    assert_same_weights(root, unbroken)


def test_a_wall_clock_that_jumps_changes_nothing(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    draw, now = random.Random(1), time.time
    monkeypatch.setattr(time, "time", lambda: now() + draw.choice([-86_400, 0, 86_400]))
    root = project(tmp_path, training=_LONGER)
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    assert_same_weights(root, unbroken)
