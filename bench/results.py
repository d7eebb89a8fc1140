"""What a run of the benchmarks leaves behind, and the statistics over its rounds."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from bench.measure import Measurement

T = TypeVar("T")

DISTURBED_SHARE = 0.04  # of the machine's CPU, used by others: from here on a measurement is repeated


@dataclass(frozen=True, kw_only=True)
class Machine:
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    torch: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Installation:
    """How a peer's environment was made. Without `error` it is there; `plain_error` is why pip alone failed."""

    peer: str
    version: str
    torch: str
    recipe: str = "plain"
    plain_error: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One driver on one workload in one round: a measurement, or the line that says why there is none."""

    round: int
    workload: str
    driver: str
    measurement: Measurement | None = None
    error: str | None = None

    @property
    def disturbed(self) -> bool:
        return self.measurement is not None and self.measurement.others_share > DISTURBED_SHARE


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast (or as small), the median over rounds and its extremes."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Results:
    command: str
    rounds: int
    seconds: float
    machine: Machine
    instructions: str  # the widest that kshot and the peers could use, as torch names them, in lower case
    installations: tuple[Installation, ...]
    records: tuple[Record, ...]

    def measurements(self, workload: str, driver: str) -> dict[int, Measurement]:
        """By round."""
        return {
            record.round: record.measurement
            for record in self.records
            if (record.workload, record.driver) == (workload, driver) and record.measurement is not None
        }

    def cost(self, workload: str, driver: str) -> float | None:
        """Median over rounds of what is to be small: seconds per episode, or MB in the workload `memory`."""
        values = [_cost(workload, measurement) for measurement in self.measurements(workload, driver).values()]
        return statistics.median(values) if values else None

    def disturbed(self, workload: str, driver: str) -> bool:
        return any(r.disturbed for r in self.records if (r.workload, r.driver) == (workload, driver))

    def ratio(self, workload: str, driver: str, rival: str) -> Ratio | None:
        """Cost of `rival` over that of `driver`, taken within each round; None without a round that has both."""
        ours, theirs = self.measurements(workload, driver), self.measurements(workload, rival)
        return spread(
            _cost(workload, theirs[n]) / _cost(workload, ours[n]) for n in sorted(ours.keys() & theirs.keys())
        )

    def best(self, workload: str, drivers: Iterable[str]) -> str | None:
        """The driver of the lowest median cost."""
        costs = {driver: self.cost(workload, driver) for driver in drivers}
        known = {driver: cost for driver, cost in costs.items() if cost is not None}
        return min(known, key=known.__getitem__) if known else None

    def floor_share(self, workload: str, driver: str, floor: str, floor_images: float, n_images: int) -> Ratio | None:
        """Time of the floor for an episode over the measured time of one, taken within each round.

        The floor was measured for some numbers of images; that of `n_images` is scaled to `floor_images`.
        """
        ours, floors = self.measurements(workload, driver), self.measurements(floor, "floor")
        return spread(
            part.median_s / n_images * floor_images / ours[number].episode_s
            for number in sorted(ours.keys() & floors.keys())
            for part in floors[number].timings
            if part.name == str(n_images)
        )


@dataclass(frozen=True, kw_only=True)
class GrowthPoint:
    """kshot's step where one thing, called `axis`, has one value and all others stay."""

    axis: str
    algorithm: str
    value: int
    images: int  # per episode
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Growth:
    command: str
    machine: Machine
    points: tuple[GrowthPoint, ...]


@dataclass(frozen=True, kw_only=True)
class PhotoReading:
    """All photos read once by one of the readers, to `size_px` where it resizes them."""

    round: int
    reader: str
    size_px: int
    seconds: float
    cpu_s: float  # of all its processes
    process_s: float  # of the whole process, its imports included
    others_share: float


@dataclass(frozen=True, kw_only=True)
class PipelineStep:
    """One command on the way from a folder of photos to a scored model; its whole process."""

    name: str
    seconds: float
    cpu_s: float
    others_share: float


@dataclass(frozen=True, kw_only=True)
class Photos:
    """How fast photos are read, and what becomes of them step by step."""

    command: str
    machine: Machine
    n_photos: int
    mean_bytes: int
    readings: tuple[PhotoReading, ...]
    steps: tuple[PipelineStep, ...]

    def of(self, reader: str, size_px: int) -> dict[int, PhotoReading]:
        """By round."""
        return {one.round: one for one in self.readings if (one.reader, one.size_px) == (reader, size_px)}

    def ratio(self, size_px: int, rival: str, cost: Callable[[PhotoReading], float]) -> Ratio | None:
        """What `rival` costs over what kshot costs, taken within each round."""
        ours, theirs = self.of("kshot", size_px), self.of(rival, size_px)
        return spread(cost(theirs[number]) / cost(ours[number]) for number in sorted(ours.keys() & theirs.keys()))


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """A training, in bytes: held before its first step, said to be needed for one, and the most it then held."""

    title: str
    held: int
    needed: int
    peak: int

    @property
    def predicted(self) -> int:
        return self.held + self.needed


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What trainings said they would need, and what they took."""

    command: str
    machine: Machine
    n_steps: int
    uses: tuple[MemoryUse, ...]


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """A model in one mode: the fraction right in each episode by setting, and minutes of CPU that its training took."""

    title: str
    mode: str
    minutes: float
    accuracy: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """What is compared, learners or options, on the same episodes."""

    of: str
    machine: Machine
    rows: tuple[AccuracyRow, ...]

    @property
    def titles(self) -> frozenset[str]:
        return frozenset(row.title for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class ServingLoad:
    """A server under load by a number of clients: rates per second and times of a request in milliseconds."""

    round: int
    server: str
    what: str
    clients: int
    per_s: float
    bad_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What servers of one model answer; `overload` and `soak` are of kshot's."""

    command: str
    machine: Machine
    model: str
    loads: tuple[ServingLoad, ...]
    overload: dict[str, float]
    soak: dict[str, float] | None


@dataclass(frozen=True, kw_only=True)
class FrozenTiming:
    """One thing done on the features of a frozen encoder, once in each round."""

    round: int
    name: str
    seconds: float
    others_share: float


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a frozen encoder costs: to embed items once, to train on what is kept of them, and to score heads."""

    command: str
    machine: Machine
    encoder: str
    n_items: int
    n_episodes: int  # scored with each head
    timings: tuple[FrozenTiming, ...]

    def of(self, name: str) -> dict[int, FrozenTiming]:
        """By round."""
        return {one.round: one for one in self.timings if one.name == name}


def spread(values: Iterable[float]) -> Ratio | None:
    ordered = sorted(values)
    return Ratio(median=statistics.median(ordered), low=ordered[0], high=ordered[-1]) if ordered else None


def _cost(workload: str, measurement: Measurement) -> float:
    return measurement.peak_rss_mb if workload == "memory" else measurement.episode_s


def save(value: Results | Growth | Installation | Photos | Memory | Frozen | Serving | Accuracies, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(TypeAdapter(type(value)).dump_json(value, indent=1) + b"\n")


def load(kind: type[T], path: Path) -> T | None:
    """What was saved, or None when nothing was."""
    return TypeAdapter(kind).validate_json(path.read_bytes()) if path.is_file() else None
