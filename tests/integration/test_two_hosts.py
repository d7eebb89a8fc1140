"""A training over two hosts, each in a network namespace and a folder of its own: the weights are those of one host."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kshot.config import load_params
from kshot.errors import ConfigError
from kshot.runtime.workers import Hosts
from kshot.stages import meta_train
from kshot.workspace import Workspace
from tests.processes import wait_until_gone
from tests.trainings import (
    ENVIRONMENT,
    LONG,
    assert_same_weights,
    command_line,
    descendants,
    project,
    wait_for_checkpoint,
)

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29400


@dataclass(frozen=True)
class Host:
    namespace: str
    interface: str
    rank: int

    def start(self, root: Path) -> subprocess.Popen[str]:
        core = str(self.rank % (os.cpu_count() or 1))  # one core each, so one thread as on one host
        environment = ENVIRONMENT | {
            "KSHOT_RENDEZVOUS": f"{ADDRESSES[0]}:{PORT}",
            "KSHOT_HOST_RANK": str(self.rank),
            "KSHOT_HOST_ADDRESS": ADDRESSES[self.rank],
            "GLOO_SOCKET_IFNAME": self.interface,
        }
        return subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.namespace,
                "taskset",
                "--cpu-list",
                core,
                sys.executable,
                "-m",
                "kshot",
                "train",
            ],
            cwd=root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    name = uuid.uuid4().hex[:6]
    pair = tuple(Host(f"kshot-{name}-{rank}", f"ks{name}{rank}", rank) for rank in range(2))
    if not (shutil.which("ip") and ip("netns", "add", pair[0].namespace)):
        pytest.skip("no network namespace can be made here")
    try:
        ip("netns", "add", pair[1].namespace)
        ip("link", "add", pair[0].interface, "type", "veth", "peer", "name", pair[1].interface)
        for host, address in zip(pair, ADDRESSES, strict=True):
            ip("link", "set", host.interface, "netns", host.namespace)
            for command in (
                ("addr", "add", f"{address}/24", "dev", host.interface),
                ("link", "set", host.interface, "up"),
                ("link", "set", "lo", "up"),
            ):
                assert ip("-n", host.namespace, *command)
        yield pair[0], pair[1]
    finally:
        for host in pair:
            ip("netns", "del", host.namespace)


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = project(tmp_path_factory.mktemp("one_host"), training=LONG | {"checkpoint_every_s": 0.1})
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    return root


def start_both(hosts: tuple[Host, Host], folder: Path) -> dict[Path, subprocess.Popen[str]]:
    settings = LONG | {"checkpoint_every_s": 0.1}
    roots = [project(folder / str(host.rank), n_hosts=2, training=settings) for host in hosts]
    return {root: host.start(root) for host, root in zip(hosts, roots, strict=True)}


def end_of_both(running: dict[Path, subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=400)[0] for process in running.values()]
    assert [process.returncode for process in running.values()] == [0, 0], outputs
    return outputs


def test_two_hosts_end_with_the_weights_of_one(hosts: tuple[Host, Host], tmp_path: Path, one_host: Path) -> None:
    running = start_both(hosts, tmp_path)
    end_of_both(running)
    first, second = running
    assert_same_weights(first, one_host)
    assert not (second / "artifacts/meta_train").exists()  # the host of the first worker writes


def test_a_worker_killed_on_the_second_host_costs_a_restart_and_no_bit(
    hosts: tuple[Host, Host], tmp_path: Path, one_host: Path
) -> None:
    running = start_both(hosts, tmp_path)
    first, second = running
    wait_for_checkpoint(first)
    below = descendants(running[second].pid)
    (worker,) = (pid for pid in below if command_line(pid).endswith("kshot stage meta_train") and is_worker(pid))
    os.kill(worker, signal.SIGKILL)
    wait_until_gone(worker)
    output = end_of_both(running)[0]
    assert "resuming from the checkpoint of step" in output
    assert not list((second / ".kshot/checkpoints").glob("*/step-*"))
    assert_same_weights(first, one_host)


def is_worker(pid: int) -> bool:
    return "torch.distributed" not in command_line(pid)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "process.n_hosts is 2, and KSHOT_RENDEZVOUS is ''; need HOST:PORT of the first host there; next: KSHOT_"),
        ({"KSHOT_RENDEZVOUS": "10.0.0.1"}, "KSHOT_RENDEZVOUS is '10.0.0.1'; need HOST:PORT"),
        ({"KSHOT_RENDEZVOUS": "a:1"}, "KSHOT_HOST_RANK is ''; need 0 on the first host, up to 1"),
        ({"KSHOT_RENDEZVOUS": "a:1", "KSHOT_HOST_RANK": "2"}, "KSHOT_HOST_RANK is '2'; need 0 on the first host"),
    ],
)
def test_hosts_that_do_not_know_where_they_meet_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name in ("KSHOT_RENDEZVOUS", "KSHOT_HOST_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Hosts.from_environment(2)
