"""python -m bench.growth: how kshot's step grows with classes, shots, pixels, episodes and processes."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from bench import report
from bench.drivers import DRIVERS
from bench.measure import Noise, Request
from bench.processes import MAX_REPEATS, DriverError, quietest, run_command, run_driver
from bench.results import Growth, GrowthPoint, save
from bench.run import build_kernels, describe, describe_machine
from bench.workloads import FIVE_WAY, Algorithm, Shape, Workload
from kshot.runtime.workers import torchrun_command

_EPISODES: dict[Algorithm, int] = {"protonet": 1, "maml": 4}  # per step, where that is not what grows


@dataclass(frozen=True, kw_only=True)
class Point:
    axis: str
    value: int
    workload: Workload
    noise: Noise = field(default_factory=Noise)


def points() -> Iterator[Point]:
    """Everything that is measured, on random images, 20 per class, where nothing else is said."""
    for algorithm in _EPISODES:
        for n_way in (5, 10, 20, 40, 60):
            yield Point(axis="n_way", value=n_way, workload=_training(algorithm, Shape(n_way=n_way, k_shot=1)))
        for k_shot in (1, 5, 10, 20):
            shape = Shape(n_way=5, k_shot=k_shot)
            noise = Noise(images_per_class=k_shot + shape.n_query)
            yield Point(axis="k_shot", value=k_shot, workload=_training(algorithm, shape), noise=noise)
        for size in (28, 84):
            yield Point(axis="image_size", value=size, workload=_training(algorithm), noise=Noise(image_size=size))
        for episodes in (1, 2, 4, 8, 16, 32):
            workload = replace(_training(algorithm), episodes=episodes)
            yield Point(axis="episodes_per_step", value=episodes, workload=workload)
        for n_processes in (1, 2):
            workload = replace(_training(algorithm), episodes=16)
            yield Point(axis="processes", value=n_processes, workload=workload)
    draw = Workload(name="draw", kind="draw", episodes=16)
    for n_classes in (1_000, 10_000, 100_000, 1_000_000):
        yield Point(axis="classes", value=n_classes, workload=draw, noise=Noise(n_classes=n_classes))


def _training(algorithm: Algorithm, shape: Shape = FIVE_WAY) -> Workload:
    return Workload(name=algorithm, algorithm=algorithm, shapes=(shape,), episodes=_EPISODES[algorithm])


def measure_point(point: Point, *, seconds: float, repeats: int) -> GrowthPoint:
    request = Request(workload=point.workload, root_pid=os.getpid(), seconds=seconds, noise=point.noise)
    run = partial(run_driver, DRIVERS["kshot"], request)
    if point.axis == "processes":
        command, environment = torchrun_command(DRIVERS["kshot"].module, point.value)
        run = partial(run_command, command, replace(request, steps=max(2, round(3 * seconds))), environment)
    return GrowthPoint(
        axis=point.axis,
        algorithm=point.workload.algorithm if point.workload.kind == "train" else "sampling",
        value=point.value,
        images=point.workload.shapes[0].n_images,
        measurement=quietest(run, repeats),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of repeated steps in a measurement")
    parser.add_argument("--only", help="one axis; prints its lines and writes nothing")
    parser.add_argument("--repeats", type=int, default=MAX_REPEATS, help="of a measurement that others disturbed")
    options = parser.parse_args()
    build_kernels()
    measured = []
    for point in points():
        if options.only in (None, point.axis):
            name = f"{point.axis:<18} {point.value:<8} {point.workload.name:<9}"
            try:
                measured.append(measure_point(point, seconds=options.seconds, repeats=options.repeats))
            except DriverError as error:
                print(f"{name} failed: {error}", flush=True)
            else:
                print(f"{name} {describe(measured[-1].measurement)}", flush=True)
    if options.only is None:
        growth = Growth(
            command=" ".join(["python -m bench.growth", *sys.argv[1:]]),
            machine=describe_machine(),
            points=tuple(measured),
        )
        save(growth, report.GROWTH)
        if report.saved_results():
            return report.main()
        print("next: python -m bench.run, which puts this on the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
