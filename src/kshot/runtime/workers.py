"""Worker processes of one training job: devices, ranks, shares of the episodes, sums over all of them.

Launch and restart are torchrun's. Two settings matter after a worker was killed: the new group must
not read the dead workers' addresses from the store that the agent keeps, and must not wait half an
hour for them.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from kshot.errors import ConfigError
from kshot.runtime.cpu import usable_cores

RENDEZVOUS, HOST_RANK, HOST_ADDRESS = "KSHOT_RENDEZVOUS", "KSHOT_HOST_RANK", "KSHOT_HOST_ADDRESS"

_GROUP_TIMEOUT_S = 60
_JOIN_TIMEOUT_S = 600  # of the hosts of one job: they may start as far apart
_MAX_RESTARTS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """This process among `world_size`. With one process every method is the identity."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """This worker's part of `numbers`; the parts of all workers, in order, make up `numbers`."""
        each, first_with_less = divmod(len(numbers), self.world_size)
        start = self.rank * each + min(self.rank, first_with_less)
        return numbers[start : start + each + (self.rank < first_with_less)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all workers.

        On the CPU it is a `PairwiseSum` in the order of the ranks, so that the bits do not depend on how
        many workers there are; GPUs reduce in an order of their own, and in place.
        """
        if self.world_size == 1:
            return tensor
        if tensor.is_cuda:
            distributed.all_reduce(tensor)
            return tensor
        of_all = [torch.empty_like(tensor) for _ in range(self.world_size)]
        distributed.all_gather(of_all, tensor)
        total = PairwiseSum()
        for one in of_all:
            total.add(one)
        return total.result()

    def from_first(self, value: T, device: torch.device) -> T:
        """What the first worker has, on all; `device` is this worker's."""
        if self.world_size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0, device=device)
        return held[0]


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The hosts of one training, each of which runs the same command, and this one among them.

    `rendezvous` is HOST:PORT of the first, where they meet; `address` is how the others reach this one, where its name
    does not say.
    """

    n: int
    rank: int
    rendezvous: str
    address: str | None = None

    @classmethod
    def from_environment(cls, n: int) -> "Hosts | None":
        """None for one host. Raises ConfigError where the environment does not say where several meet."""
        if n == 1:
            return None
        rendezvous, rank = os.environ.get(RENDEZVOUS, ""), os.environ.get(HOST_RANK, "")
        if not re.fullmatch(r".+:\d+", rendezvous):
            raise ConfigError(
                f"process.n_hosts is {n}, and {RENDEZVOUS} is {rendezvous!r}; need HOST:PORT of the first host there; "
                f"next: {RENDEZVOUS}=10.0.0.1:29400 {HOST_RANK}=0, and the same command on each host, with its rank"
            )
        if not rank.isdecimal() or int(rank) >= n:
            raise ConfigError(
                f"process.n_hosts is {n}, and {HOST_RANK} is {rank!r}; need 0 on the first host, up to {n - 1}"
            )
        return cls(n=n, rank=int(rank), rendezvous=rendezvous, address=os.environ.get(HOST_ADDRESS))

    def options(self, job: str) -> list[str]:
        """Of torchrun, for the job of this name."""
        return [
            f"--nnodes={self.n}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.rendezvous}",
            f"--rdzv-id={job}",
            f"--rdzv-conf=is_host={int(self.rank == 0)},join_timeout={_JOIN_TIMEOUT_S}",
            *([f"--local-addr={self.address}"] if self.address else []),
        ]


class PairwiseSum:
    """A sum of tensors, added two by two like the rounds of a tournament.

    A power of two of neighbours is summed by itself, whatever follows. So 2 or 4 workers that each sum
    their part of 8 terms, and then sum the parts, get the bits of one worker that sums all 8.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, Tensor]] = []  # how many terms, and their sum; the counts fall

    def add(self, term: Tensor) -> None:
        count, total = 1, term
        while self._sums and self._sums[-1][0] == count:
            count, total = 2 * count, self._sums.pop()[1] + total
        self._sums.append((count, total))

    def result(self) -> Tensor:
        """The sum of at least one term."""
        total = self._sums[-1][1]
        for _, before in reversed(self._sums[:-1]):
            total = before + total
        return total


def choose_device(name: str) -> torch.device:
    """The device called auto, cpu or cuda; auto is a GPU where there is one, another for each worker."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("process.device is cuda; found no GPU that torch can use; next: set it to auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def in_worker() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_world_size() -> int:
    """How many workers of this job run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_spread_over_hosts(workers: Workers) -> bool:
    return workers.world_size > local_world_size()


@contextmanager
def joined_workers(device: torch.device) -> Iterator[Workers]:
    """The group that torchrun started this process in, or a group of one."""
    if not in_worker():
        yield Workers()
        return
    one_gpu_each = device.type == "cuda" and local_world_size() <= torch.cuda.device_count()
    backend = "nccl" if one_gpu_each else "gloo"  # NCCL refuses two workers on one GPU
    distributed.init_process_group(backend, timeout=timedelta(seconds=_GROUP_TIMEOUT_S))
    try:
        yield Workers(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def torchrun_command(
    module: str, n_processes: int, *arguments: str, hosts: Hosts | None = None
) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run `module` in `n_processes` workers, which end with this process.

    With `hosts` they are those of this host, and all hosts run it with the same arguments.
    """
    where = ["--standalone"] if hosts is None else hosts.options("-".join([module, *arguments]))
    torchrun = ["torch.distributed.run", *where, f"--nproc-per-node={n_processes}"]
    command = [
        sys.executable,
        "-m",
        "kshot.runtime.lifeline",
        *torchrun,
        f"--max-restarts={_MAX_RESTARTS}",
        "-m",
        module,
        *arguments,
    ]
    threads = max(1, usable_cores() // n_processes)
    own_store_after_restart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return command, os.environ | own_store_after_restart | {"OMP_NUM_THREADS": str(threads)}
