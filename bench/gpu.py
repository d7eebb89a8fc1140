"""python -m bench.gpu: kshot's training steps on a GPU. How many episodes per second, and what would make it more.

Each step is queued with torch set to fail where the host waits for the device. Beside it stand bfloat16, episodes
drawn on the host and copied from pinned memory, the gradient captured in a CUDA graph, and torch.compile. Busy is the
time of kernels and copies in one profiled batch of steps, as a share of the median batch.
"""

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.drivers.kshot_steps import Data, training_job
from bench.measure import Request
from bench.workloads import WORKLOADS
from kshot.data.gather import ResidentItems
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import ReadAhead, SampledPool
from kshot.episodes.sampling import EpisodeIndices
from kshot.runtime.workers import Workers
from kshot.training.loop import TrainingJob, gradient_and_loss, training_step, update
from kshot.training.objectives import Episodic
from kshot.training.optimizers import Optimizer

_QUEUED = 64  # steps in a batch, so that each draws as many blocks of episodes
_TRAINING = tuple(name for name, workload in WORKLOADS.items() if workload.kind == "train" and name != "memory")

Step = Callable[[int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians over batches of steps; busy is None where no GPU did the work."""

    episodes_per_s: float
    busy: float | None

    def __str__(self) -> str:
        return f"{self.episodes_per_s:,.0f}" + ("" if self.busy is None else f" ({self.busy:.0%} busy)")


@dataclass(frozen=True)
class _Held:
    """A pool whose few episodes lie where a graph reads their indices."""

    indices: EpisodeIndices[Tensor]
    shape: EpisodeShape

    def episodes(self, numbers: range) -> EpisodeIndices[Tensor]:
        return self.indices[numbers.start : numbers.stop]


def captured(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`compute` as a CUDA graph, which is replayed into the tensor that it returned when it was captured."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # until libraries have chosen their algorithms
            compute()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@dataclass(frozen=True)
class _Pinned:
    """Episodes drawn on the host and copied from pinned memory, which the host need not wait for."""

    pool: SampledPool
    device: torch.device

    @property
    def shape(self) -> EpisodeShape:
        return self.pool.shape

    def episodes(self, numbers: range) -> EpisodeIndices[Tensor]:
        drawn = self.pool.episodes(numbers)
        support, query, class_ids, keys = (
            torch.from_numpy(part).pin_memory().to(self.device, non_blocking=True)
            for part in (drawn.support, drawn.query, drawn.class_ids, drawn.keys)
        )
        return EpisodeIndices(support=support, query=query, class_ids=class_ids, keys=keys)


class GraphedStep:
    """`training_step` with its gradient replayed from a CUDA graph; drawing and updating stay as they are."""

    def __init__(
        self,
        job: TrainingJob,
        optimizer: Optimizer,
        capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] = captured,
    ) -> None:
        self._job, self._optimizer, self._n = job, optimizer, job.settings.episodes_per_step
        self._pool = train_loader(job).pool
        drawn = self._pool.episodes(range(self._n))
        self._held = EpisodeIndices(
            support=drawn.support.clone(),
            query=drawn.query.clone(),
            class_ids=drawn.class_ids.clone(),
            keys=drawn.keys.clone(),
        )
        loader = EpisodeLoader(pool=_Held(self._held, self._pool.shape), gather=train_loader(job).gather)
        self._replay = capture(partial(gradient_and_loss, with_loader(job, loader), 0, range(self._n)))

    def __call__(self, step: int) -> Tensor:
        drawn = self._pool.episodes(range(step * self._n, (step + 1) * self._n))
        self._held.support.copy_(drawn.support)
        self._held.query.copy_(drawn.query)
        self._held.keys.copy_(drawn.keys)
        return update(self._job, self._optimizer, step, self._replay())


def eager(job: TrainingJob, optimizer: Optimizer) -> Step:
    return lambda step: training_step(job, optimizer, step)


def compiled(job: TrainingJob, optimizer: Optimizer) -> Step:
    torch._dynamo.reset()  # it would remember the shapes of the workload before
    learner = episodic(job).learner
    learner.meta_loss = torch.compile(learner.meta_loss, dynamic=False)  # type: ignore[method-assign]
    return eager(job, optimizer)


def episodic(job: TrainingJob) -> Episodic:
    assert isinstance(job.objective, Episodic)
    return job.objective


def train_loader(job: TrainingJob) -> EpisodeLoader:
    return episodic(job).train


def with_loader(job: TrainingJob, loader: EpisodeLoader) -> TrainingJob:
    return replace(job, objective=replace(episodic(job), train=loader))


@dataclass(frozen=True, kw_only=True)
class Way:
    make: Callable[[TrainingJob, Optimizer], Step] = eager
    precision: str = "float32"
    draws_on_host: bool = False


WAYS = {
    "float32": Way(),
    "bfloat16": Way(precision="bfloat16"),
    "drawn on host": Way(draws_on_host=True),
    "graph": Way(make=GraphedStep),
    "bfloat16 graph": Way(make=GraphedStep, precision="bfloat16"),
    "compile": Way(make=compiled),
}


def measure(workload_name: str, way: Way, *, data_folder: Path, device: torch.device, seconds: float) -> Speed:
    job = _job(workload_name, way, data_folder, device)
    step, numbers = way.make(job, job.new_optimizer()), count()
    _run(step, numbers, device)  # where libraries are loaded and code is compiled, which waits
    times: list[float] = []
    until = time.perf_counter() + seconds
    with _no_waiting(device):
        while len(times) < 2 or time.perf_counter() < until:
            started = time.perf_counter()
            _run(step, numbers, device)
            times.append(time.perf_counter() - started)
    busy = None
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            _run(step, numbers, device)
        on_device = (one for one in profiled.key_averages() if one.device_type.name == "CUDA")
        busy = sum(one.self_device_time_total for one in on_device) / 1e6 / statistics.median(times)
    episodes = _QUEUED * job.settings.episodes_per_step
    return Speed(episodes_per_s=episodes / statistics.median(times), busy=busy)


def _job(workload_name: str, way: Way, data_folder: Path, device: torch.device) -> TrainingJob:
    workload, dataset = WORKLOADS[workload_name], PackedDataset.open(data_folder)
    gather = ResidentItems(dataset, device)
    data = Data(item=dataset.item, table=dataset.class_table("meta_train"), gather=gather)
    request = Request(workload=workload, root_pid=0, precision=way.precision)
    job = training_job(workload, workload.shapes[0], data, request, Workers(), device)
    if not way.draws_on_host:
        return job
    pool = ReadAhead(_Pinned(data.pool(workload.shapes[0]), device))
    return with_loader(job, EpisodeLoader(pool=pool, gather=gather))


def _run(step: Step, numbers: Iterator[int], device: torch.device) -> None:
    for _ in range(_QUEUED):
        step(next(numbers))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    parser.add_argument("--data", type=Path, default=Path("data/glyphs"), help="a packed dataset")
    parser.add_argument("--seconds", type=float, default=3.0, help="of repeated steps in a measurement")
    parser.add_argument("--only", nargs="+", choices=_TRAINING, default=_TRAINING, metavar="WORKLOAD")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS), metavar="WAY", help=", ".join(WAYS))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: found no GPU that torch can use; next: --device cpu tries the script", file=sys.stderr)
        return 2
    if not (options.data / "dataset.json").is_file():
        print(f"error: no dataset at {options.data}; next: kshot ingest glyphs", file=sys.stderr)
        return 2
    where = "the CPU"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        where = torch.cuda.get_device_name(device)
    table = Table("workload", *options.ways, title=f"episodes/s on {where}, torch {torch.__version__}")
    failures = 0
    for name in options.only:
        cells = []
        for way in options.ways:
            try:
                speed = measure(name, WAYS[way], data_folder=options.data, device=device, seconds=options.seconds)
                cells.append(str(speed))
            except Exception:  # one way that does not work leaves the others to be measured
                print(f"{name}, {way}:\n{traceback.format_exc()}", file=sys.stderr)
                cells.append("failed")
                failures += 1
        table.add_row(name, *cells)
    Console(width=140).print(table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
