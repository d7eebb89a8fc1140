"""python -m bench.photos: how fast photos are read, beside a data loader and the decoding alone; then step by step.

The photos are drawn. With --only a part of it is printed, and docs/ is left alone.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.photo_files import write_photos
from bench.photo_readers import READERS
from bench.photo_tables import photo_section
from bench.project import REPOSITORY, CommandError, add_weights, kshot, prepare_project, run
from bench.results import PhotoReading, Photos, PipelineStep, save
from bench.run import describe_machine

SIZES_PX = (84, 224)
STEPS = ("ingest", "validate", "task_pool", "pretrain", "meta_train", "evaluate")
PARTS = ("reading", "steps")

_INGEST_PX = 128  # of the make target


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        photos = measure(options)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.only is None:
        save(photos, report.PHOTOS)
        report.write_section(photo_section(photos))
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
    taken = run(command, REPOSITORY, REPOSITORY / "src")
    return PhotoReading(
        round=number,
        reader=name,
        size_px=size_px,
        process_s=taken.seconds,
        others_share=taken.others_share,
        **json.loads(taken.printed.splitlines()[-1]),
    )


def run_steps(root: Path, photos: Path, names: Sequence[str]) -> Iterator[PipelineStep]:
    """Run each command once in the project `root`. Raises CommandError with the line that says why one failed."""
    ingest = ("ingest", str(photos), "--name", "photos", "--image-size", str(_INGEST_PX))
    for name in names:
        taken = kshot(root, *(ingest if name == "ingest" else ("stage", name)))
        print(
            f"{name:<12} {taken.seconds:8.2f} s  CPU {taken.cpu_s:8.2f} s  others {taken.others_share:.0%}", flush=True
        )
        yield PipelineStep(name=name, seconds=taken.seconds, cpu_s=taken.cpu_s, others_share=taken.others_share)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.photos", description=__doc__)
    parser.add_argument("--photos", type=int, default=1000, help="how many are drawn")
    parser.add_argument("--per-class", type=int, default=20, help="photos in a class folder")
    parser.add_argument("--rounds", type=int, default=3, help="of every reader")
    parser.add_argument("--only", choices=PARTS, help="one part; prints its table and writes nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
