"""One measurement: what to repeat, how long a step takes, and how much of the CPU others used. Standard library only.

A driver is a module whose process gets a Request as JSON and prints a Measurement as JSON, its last line.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.workloads import Shape, Workload

_WARM_UP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A made-up dataset of random images, for shapes that no shipped dataset has."""

    image_size: int = 28
    n_classes: int = 100
    images_per_class: int = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a driver's process is asked to measure."""

    workload: Workload
    root_pid: int  # the processes that are not "others": this one and all that it started
    seconds: float = 3.0
    steps: int | None = None  # exactly so many steps instead, where several workers must agree
    dataset: str = "data/glyphs"  # a packed dataset, for kshot
    images: str = ".kshot/bench/images.npy"  # uint8 (classes, 20, 28, 28), for the peers
    noise: Noise | None = None  # instead of the dataset
    width: int = 64
    precision: str = "float32"
    native_kernels: bool = True

    @classmethod
    def from_json(cls, text: str) -> "Request":
        raw = json.loads(text)
        raw["workload"]["shapes"] = tuple(Shape(**shape) for shape in raw["workload"]["shapes"])
        noise = raw["noise"] and Noise(**raw["noise"])
        return cls(**raw | {"workload": Workload(**raw["workload"]), "noise": noise})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A step to repeat; it works through `episodes` episodes."""

    name: str
    step: Callable[[], object]
    episodes: int
    min_steps: int = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    name: str
    episodes: int  # per step
    steps: int
    median_s: float
    p10_s: float
    p90_s: float

    @property
    def episode_s(self) -> float:
        return self.median_s / self.episodes


@dataclass(frozen=True, kw_only=True)
class Measurement:
    timings: tuple[Timing, ...]
    idle_rss_mb: float  # resident before the first step: the libraries and the images
    peak_rss_mb: float
    others_share: float  # of the machine's CPU, 0..1, while the steps ran
    notes: tuple[str, ...] = ()  # what had to be mended for the library to run

    @property
    def episode_s(self) -> float:
        """Seconds per episode, the mean over the parts."""
        return statistics.fmean(timing.episode_s for timing in self.timings)


def serve(prepare: Callable[[Request], list[Part]], *, notes: tuple[str, ...] = ()) -> None:
    """The main function of a driver: measure what the command line asks for and, in the first worker, print it."""
    request = Request.from_json(sys.argv[1])
    measurement = measure(prepare(request), request, notes=notes)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(asdict(measurement)), flush=True)


def measure(parts: list[Part], request: Request, *, notes: tuple[str, ...] = ()) -> Measurement:
    """Time each part for its share of the seconds, after a warm-up that is not counted."""
    idle_rss_mb = _rss_mb("VmRSS")
    timings = []
    others_s = wall_s = 0.0
    for part in parts:
        _warm_up(part, None if request.steps else request.seconds)
        clock = CpuClock(request.root_pid)
        timings.append(_time(part, request.seconds / len(parts), request.steps))
        part_others_s, part_wall_s = clock.others_and_wall()
        others_s, wall_s = others_s + part_others_s, wall_s + part_wall_s
    return Measurement(
        timings=tuple(timings),
        idle_rss_mb=idle_rss_mb,
        peak_rss_mb=_rss_mb("VmHWM"),
        others_share=round(others_s / wall_s / (os.cpu_count() or 1), 4),
        notes=notes,
    )


def _warm_up(part: Part, limit_s: float | None) -> None:
    """Two steps, or one where that takes longer than the limit."""
    started = time.perf_counter()
    for _ in range(_WARM_UP_STEPS):
        part.step()
        if limit_s is not None and time.perf_counter() - started > limit_s:
            return


def _time(part: Part, seconds: float, steps: int | None) -> Timing:
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < (steps or part.min_steps) or (steps is None and time.perf_counter() < end):
        started = time.perf_counter()
        part.step()
        taken.append(time.perf_counter() - started)
    ordered = sorted(taken)
    return Timing(
        name=part.name,
        episodes=part.episodes,
        steps=len(taken),
        median_s=statistics.median(taken),
        p10_s=ordered[int(0.1 * len(taken))],
        p90_s=ordered[int(0.9 * len(taken))],
    )


def _rss_mb(field: str) -> float:
    """Resident memory now (VmRSS) or at its peak (VmHWM), which unlike getrusage's knows nothing of the parent."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition(f"{field}:")[2].split()[0]) / 1024, 1)


class CpuClock:
    """How much CPU time processes other than a tree used since this clock was made."""

    def __init__(self, root_pid: int) -> None:
        self._root_pid = root_pid
        self._started = (time.perf_counter(), machine_cpu_s(), tree_cpu_s(root_pid))

    def others_and_wall(self) -> tuple[float, float]:
        wall, machine, tree = self._started
        others = (machine_cpu_s() - machine) - (tree_cpu_s(self._root_pid) - tree)
        return max(0.0, others), time.perf_counter() - wall


def machine_cpu_s() -> float:
    """CPU seconds of the whole machine, those that the host took away included."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root_pid: int) -> float:
    """CPU seconds of a process and all below it, those that ended included."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    total, waiting = 0, [root_pid]
    while waiting:
        pid = waiting.pop()
        total += ticks.get(pid, 0)
        waiting.extend(children.get(pid, []))
    return total / os.sysconf("SC_CLK_TCK")
