"""The drivers: kshot and the floors in kshot's own environment, each peer in one of its own.

A driver runs as `python -m MODULE REQUEST` and prints its measurement as the last line.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.workloads import WORKLOADS, Workload

PEERS_FOLDER = Path(".kshot/bench/peers")

_PROTONET = ("protonet-5w1s15q", "protonet-20w5s15q", "protonet-60w1s5q")
_MAML = ("maml-1step", "maml-5step")
_TRAINING = (*_PROTONET, *_MAML, "fomaml-1step", "anil-1step")
_EVERYTHING = tuple(name for name, workload in WORKLOADS.items() if workload.kind != "floor")


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Where a driver's code is, what it can do, and which Python runs it."""

    name: str
    module: str
    workloads: tuple[str, ...]
    precision: str = "float32"
    native_kernels: bool = True
    peer_version: str | None = None  # of the library on the package index; None for what is ours

    @property
    def is_peer(self) -> bool:
        return self.peer_version is not None

    @property
    def python(self) -> Path:
        return PEERS_FOLDER / self.name / "bin" / "python" if self.is_peer else Path(sys.executable)

    def does(self, workload: Workload) -> bool:
        return workload.name in self.workloads


_OWN = "bench.drivers.own"
_DRIVERS = (
    Driver(name="floor", module=_OWN, workloads=("floor-plain", "floor-conv")),
    Driver(name="kshot", module=_OWN, workloads=_EVERYTHING),
    Driver(name="kshot-torch", module=_OWN, workloads=(*_TRAINING, "memory"), native_kernels=False),
    Driver(name="kshot-bf16", module=_OWN, workloads=_TRAINING, precision="bfloat16"),
    Driver(name="learn2learn", module="bench.peers.learn2learn", workloads=_EVERYTHING, peer_version="0.2.0"),
    Driver(
        name="higher",
        module="bench.peers.higher",
        workloads=(*_MAML, "fomaml-1step", "evaluate-maml-1step", "sampling", "memory"),
        peer_version="0.2.1",
    ),
    Driver(name="torchopt", module="bench.peers.torchopt", workloads=(*_MAML, "memory"), peer_version="0.7.3"),
    Driver(
        name="easyfsl",
        module="bench.peers.easyfsl",
        workloads=(*_PROTONET, "evaluate-protonet", "sampling"),
        peer_version="1.5.0",
    ),
)
DRIVERS = {driver.name: driver for driver in _DRIVERS}
PEERS = tuple(driver.name for driver in _DRIVERS if driver.is_peer)


def in_turn(drivers: Sequence[Driver], round_number: int) -> list[Driver]:
    """The drivers, starting with another one each round, so that none always runs first on a warm or cool machine."""
    start = round_number % max(1, len(drivers))
    return [*drivers[start:], *drivers[:start]]
