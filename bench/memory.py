"""python -m bench.memory: the memory that a training says it needs, beside what it then takes.

Every training is the command that users run, on drawn photos, for a few steps.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import report
from bench.memory_tables import memory_section
from bench.photo_files import write_photos
from bench.project import CommandError, environment_of, kshot, kshot_command, prepare_project, write_params
from bench.results import Memory, MemoryUse, save
from bench.run import describe_machine
from kshot.yaml_file import read_yaml

_PHOTOS, _PER_CLASS = 800, 20
_STEPS = 3
_UNITS = {"MiB": 2**20, "GiB": 2**30}
_NEEDS = re.compile(r"a step needs about ([\d.,]+) (\w+) of memory")


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A network and a learner on episodes of `shape`, or on batches of `batch_size`, of photos of `size_px`."""

    title: str
    size_px: int
    shape: dict[str, int]
    backbone: dict[str, Any]
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "protonet"})
    training: dict[str, Any] = field(default_factory=dict)


_CONV4 = {"name": "conv4", "width": 64}
_RESNET18 = {"name": "torchvision", "model": "resnet18"}
_FIVE_WAY, _TWENTY_WAY = {"n_way": 5, "k_shot": 1, "n_query": 4}, {"n_way": 20, "k_shot": 1, "n_query": 4}

COMBINATIONS = (
    Combination(title="Conv4-64, 28 px, prototypes, 20-way", size_px=28, shape=_TWENTY_WAY, backbone=_CONV4),
    Combination(title="Conv4-64, 84 px, prototypes, 20-way", size_px=84, shape=_TWENTY_WAY, backbone=_CONV4),
    Combination(
        title="Conv4-64, 28 px, MAML, 5-way, 4 episodes",
        size_px=28,
        shape=_FIVE_WAY | {"n_query": 15},
        backbone=_CONV4,
        algorithm={"name": "maml"},
        training={"episodes_per_step": 4},
    ),
    Combination(
        title="ResNet-12 of 64 to 512, 84 px, prototypes, 5-way",
        size_px=84,
        shape=_FIVE_WAY,
        backbone={"name": "resnet12", "widths": [64, 128, 256, 512]},
    ),
    Combination(title="ResNet-18, 224 px, prototypes, 5-way", size_px=224, shape=_FIVE_WAY, backbone=_RESNET18),
    Combination(
        title="ResNet-18, 128 px, ordinary training, batches of 32",
        size_px=128,
        shape=_FIVE_WAY,
        backbone=_RESNET18,
        algorithm={"name": "linear_probe"},
        training={"batch_size": 32},
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        measured = measure(COMBINATIONS[: options.first], _PHOTOS, _PER_CLASS)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.first is None:
        save(measured, report.MEMORY)
        report.write_section(memory_section(measured))
    else:
        print(memory_section(measured))
    return 0


def measure(combinations: Sequence[Combination], n_photos: int, per_class: int) -> Memory:
    with TemporaryDirectory(prefix="kshot-bench-") as folder:
        photos, project = Path(folder, "photos"), Path(folder, "project")
        write_photos(photos, n_photos, per_class)
        prepare_project(project)
        return Memory(
            command=" ".join(["python -m bench.memory", *sys.argv[1:]]),
            machine=describe_machine(),
            n_steps=_STEPS,
            uses=tuple(_uses(project, photos, combinations)),
        )


def _uses(project: Path, photos: Path, combinations: Sequence[Combination]) -> Iterator[MemoryUse]:
    preset = read_yaml(project / "params.yaml")
    for combination in combinations:
        dataset = f"photos-{combination.size_px}"
        if not (project / "data" / dataset).is_dir():
            kshot(project, "ingest", str(photos), "--name", dataset, "--image-size", str(combination.size_px))
        write_params(project, params_of(combination, preset, dataset))
        for stage in ("validate", "task_pool", "pretrain"):
            kshot(project, "stage", stage)
        use = _train(project, combination.title)
        print(f"{use.title:<55} {use.predicted / use.peak:.2f} of {use.peak / 2**30:.2f} GiB", flush=True)
        yield use


def params_of(combination: Combination, preset: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The settings of a training of a few steps from random weights."""
    pools = preset["task_pool"]
    pools = pools | {"meta_train": pools["meta_train"] | {"shape": combination.shape}}
    training = {"n_steps": _STEPS, "validate_every": _STEPS} | combination.training
    test = {"n_episodes": 2, "n_query": 4, "settings": [{"n_way": 2, "k_shot": 1}], "sampler": {"name": "uniform"}}
    return preset | {
        "dataset": {"name": dataset},
        "task_pool": pools | {"meta_val": pools["meta_val"] | {"n_episodes": 2}, "meta_test": test},
        "backbone": combination.backbone,
        "meta_train": {"algorithm": combination.algorithm, "initial": "random", "training": training},
    }


def _train(project: Path, title: str) -> MemoryUse:
    """Read what the process holds when it says what it needs, and the most it has held when it ends."""
    process = subprocess.Popen(
        kshot_command("stage", "meta_train"),
        cwd=project,
        env=environment_of(project / "src"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = None
    with process.stdout:
        for line in process.stdout:
            if found := _NEEDS.search(line):
                said = _resident_bytes(process.pid), int(float(found[1].replace(",", "")) * _UNITS[found[2]])
    _, status, used = os.wait4(process.pid, 0)  # what the kernel counted of this process alone
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or said is None:
        raise CommandError(f"kshot stage meta_train for {title}: exit code {process.returncode}, see above")
    return MemoryUse(title=title, held=said[0], needed=said[1], peak=used.ru_maxrss * 1024)


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--first", type=int, help="so many of the combinations; prints the table and writes nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
