"""python -m bench.run: every workload by every driver, interleaved over rounds; then the report.

With --isa avx2 all of it without newer instructions; the report sets both runs side by side. A run of some workloads
or drivers prints its tables and leaves docs/ alone.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from bench.drivers import DRIVERS, Driver, in_turn
from bench.instructions import HELD, hold
from bench.make_peers import installations
from bench.measure import Measurement, Request
from bench.processes import MAX_REPEATS, DriverError, quietest, run_driver
from bench.results import DISTURBED_SHARE, Machine, Record, Results, save
from bench.workloads import WORKLOADS, Workload
from kshot.backbones.layers.native import build_native
from kshot.errors import KshotError
from kshot.runtime.cpu import cpu_name, usable_cores

PARTIAL_RESULTS = Path(".kshot/bench/partial.json")
IMAGES = Path(".kshot/bench/images.npy")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not (options.data / "dataset.json").is_file():
        print(f"error: no dataset at {options.data}; next: kshot ingest glyphs", file=sys.stderr)
        return 2
    try:
        instructions = hold(options.isa)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    build_kernels()
    prepare_images(options.data)
    results = Results(
        command=" ".join(["python -m bench.run", *(sys.argv[1:] if arguments is None else arguments)]),
        rounds=options.rounds,
        seconds=options.seconds,
        machine=describe_machine(),
        instructions=instructions,
        installations=installations(),
        records=tuple(_measure_all(options)),
    )
    whole = set(options.only) == set(WORKLOADS) and set(options.drivers) == set(DRIVERS)
    save(results, report.results_file(instructions) if whole else PARTIAL_RESULTS)
    if whole:
        report.write(report.saved_results())
    else:
        print(report.tables([results]))
    return 0


def build_kernels() -> None:
    """kshot is measured with its native kernels and without."""
    try:
        build_native()
    except KshotError as error:
        sys.exit(f"error: {error}")


def prepare_images(dataset_folder: Path) -> None:
    """The meta_train images as the peers read them: uint8 (classes, 20, 28, 28)."""
    import numpy as np

    from kshot.data.packed import PackedDataset

    dataset = PackedDataset.open(dataset_folder)
    table = dataset.class_table("meta_train")
    IMAGES.parent.mkdir(parents=True, exist_ok=True)
    np.save(IMAGES, dataset.gather(table.items[:, :20])[..., 0])


def describe_machine() -> Machine:
    return Machine(
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
        date=datetime.now(UTC).date().isoformat(),
    )


def _measure_all(options: argparse.Namespace) -> list[Record]:
    records = []
    for number in range(options.rounds):
        for workload in [WORKLOADS[name] for name in WORKLOADS if name in options.only]:
            drivers = [DRIVERS[name] for name in DRIVERS if name in options.drivers and DRIVERS[name].does(workload)]
            for driver in in_turn(drivers, number):
                record = _measure(driver, workload, number, options)
                print(f"round {number + 1}/{options.rounds}  {_line(record)}", flush=True)
                records.append(record)
    return records


def _measure(driver: Driver, workload: Workload, number: int, options: argparse.Namespace) -> Record:
    request = Request(
        workload=workload,
        root_pid=os.getpid(),
        seconds=options.seconds,
        dataset=str(options.data),
        images=str(IMAGES),
        precision=driver.precision,
        native_kernels=driver.native_kernels,
    )
    try:
        measurement = quietest(lambda: run_driver(driver, request), options.repeats)
    except DriverError as error:
        return Record(round=number, workload=workload.name, driver=driver.name, error=str(error))
    return Record(round=number, workload=workload.name, driver=driver.name, measurement=measurement)


def _line(record: Record) -> str:
    names = f"{record.workload:<20} {record.driver:<12}"
    if record.measurement is None:
        return f"{names} failed: {record.error}"
    return f"{names} {describe(record.measurement)}"


def describe(measurement: Measurement) -> str:
    share, first = measurement.others_share, measurement.timings[0]
    return (
        f"{1000 * measurement.episode_s:10.3f} ms per episode  p10..p90 of {first.steps} steps "
        f"{1000 * first.p10_s:.1f}..{1000 * first.p90_s:.1f} ms  {measurement.peak_rss_mb:.0f} MB  "
        f"others {share:.0%}{' (disturbed)' if share > DISTURBED_SHARE else ''}"
    )


def _parser() -> argparse.ArgumentParser:
    def names(known: Sequence[str]):  # type: ignore[no-untyped-def]
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--isa", choices=[*HELD], help="hold kshot and the peers to these instructions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of repeated steps in a measurement")
    parser.add_argument("--only", type=names([*WORKLOADS]), default=[*WORKLOADS], metavar="WORKLOAD,...")
    parser.add_argument("--drivers", type=names([*DRIVERS]), default=[*DRIVERS], metavar="NAME,...")
    parser.add_argument("--data", type=Path, default=Path("data/glyphs"), help="a packed dataset of 28x28 grey images")
    parser.add_argument("--repeats", type=int, default=MAX_REPEATS, help="of a measurement that others disturbed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
