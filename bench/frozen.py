"""python -m bench.frozen: what it saves to keep a frozen encoder's features, and how fast heads are scored on them."""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench import report
from bench.drivers.kshot_steps import NoCheckpoints
from bench.frozen_tables import EMBED, EMBEDDED_STEP, KEPT_STEP, frozen_section
from bench.measure import CpuClock
from bench.photo_files import write_photos
from bench.project import CommandError, add_weights, kshot, prepare_project, write_params
from bench.results import Frozen, FrozenTiming, save
from bench.run import describe_machine
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Backbone
from kshot.backbones.layers.adapter import LinearAdapter
from kshot.config import Params, load_params
from kshot.data.gather import Gather, item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen, read_val_pool, train_pools
from kshot.episodes.loader import EpisodeLoader
from kshot.evaluation.baselines import pretrained_baselines
from kshot.evaluation.features import KeptItems, on_kept_features
from kshot.evaluation.scoring import all_embedded_once, score_episodes
from kshot.model import load_model
from kshot.runtime.process import set_up_process
from kshot.training.loop import TrainingJob, TrainingSettings, training_step
from kshot.training.objectives import Episodic
from kshot.workspace import Workspace
from kshot.yaml_file import read_yaml

_PER_CLASS = 20
_SIZE_PX = 128
_SETTING = "5w5s"
_STEPS = {KEPT_STEP: 300, EMBEDDED_STEP: 3}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        measured = measure(options)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.print:
        print(frozen_section(measured))
    else:
        save(measured, report.FROZEN)
        report.write_section(frozen_section(measured))
    return 0


def measure(options: argparse.Namespace) -> Frozen:
    with TemporaryDirectory(prefix="kshot-bench-") as folder:
        photos, root = Path(folder, "photos"), Path(folder, "project")
        write_photos(photos, options.photos, _PER_CLASS)
        prepare_project(root)
        add_weights(root)
        write_params(root, params_of(read_yaml(root / "params.yaml"), options.episodes))
        kshot(root, "ingest", str(photos), "--name", "photos", "--image-size", str(_SIZE_PX))
        for stage in ("validate", "task_pool", "pretrain"):
            kshot(root, "stage", stage)
        params, workspace = load_params(root / "params.yaml"), Workspace(root)
        timings = [*_timings(params, workspace, options.rounds)]
    return Frozen(
        command=" ".join(["python -m bench.frozen", *sys.argv[1:]]),
        machine=describe_machine(),
        encoder="EfficientNet-Lite0",
        n_items=options.photos,
        n_episodes=options.episodes,
        timings=tuple(timings),
    )


def params_of(preset: dict[str, Any], n_episodes: int) -> dict[str, Any]:
    """Those of the preset with the pools that are measured."""
    pools = preset["task_pool"]
    train = pools["meta_train"] | {"shape": {"n_way": 20, "k_shot": 1, "n_query": 4}}
    test = pools["meta_test"] | {"n_episodes": n_episodes, "n_query": 15, "settings": [{"n_way": 5, "k_shot": 5}]}
    return preset | {"task_pool": pools | {"meta_train": train, "meta_test": test}}


def _timings(params: Params, workspace: Workspace, rounds: int) -> Iterator[FrozenTiming]:
    """Each round with features of its own, and its parts one after the other."""
    set_up_process(params.process)
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    items = item_gather(dataset, torch.device("cpu"))
    for number in range(rounds):
        kept = KeptItems(items, dataset, workspace.features / str(number))
        for name, n_times, work in _parts(params, workspace, dataset, items, kept):
            clock, started = CpuClock(os.getpid()), time.perf_counter()
            work()
            seconds = (time.perf_counter() - started) / n_times
            others_s, wall_s = clock.others_and_wall()
            others_share = round(others_s / wall_s / (os.cpu_count() or 1), 4)
            print(f"round {number + 1}/{rounds}  {name:<40} {seconds:9.4f} s  others {others_share:.0%}", flush=True)
            yield FrozenTiming(round=number, name=name, seconds=seconds, others_share=others_share)


def _parts(
    params: Params, workspace: Workspace, dataset: PackedDataset, items: Gather, kept: KeptItems
) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(name, how many times it is done, what is done)."""
    backbone = load_model(workspace.pretrained_model).learner.backbone
    assert isinstance(backbone, Backbone)
    features = kept.features_of(backbone)
    assert features is not None, "nothing of the encoder is trained"
    everything = torch.arange(len(dataset.labels)).numpy()
    yield EMBED, 1, lambda: features(everything)

    learner = ProtoNet(LinearAdapter().build(backbone))
    on_features, of_kept = on_kept_features(learner, kept)
    for name, of_step, gather in ((KEPT_STEP, on_features, of_kept), (EMBEDDED_STEP, learner, items)):
        steps = _steps(params, workspace, dataset, copy(of_step), gather)
        next(steps)  # a step to warm up
        yield name, _STEPS[name], partial(deque, islice(steps, _STEPS[name]), maxlen=0)

    frozen = read_frozen(workspace.output("task_pool"), dataset, params.task_pool)
    beside = pretrained_baselines(workspace.pretrained_model, learner, dataset, items, seed=params.seed)
    scored = all_embedded_once({"linear adapter, prototypes": learner.eval(), **beside}, kept)
    for name, (head, gather) in scored.items():
        yield name, 1, partial(score_episodes, head, frozen.test[_SETTING].indices, gather)


def _steps(
    params: Params, workspace: Workspace, dataset: PackedDataset, learner: ProtoNet, gather: Gather
) -> Iterator[object]:
    train = EpisodeLoader.of_training(train_pools(dataset, params.task_pool, seed=params.seed), gather)
    val_pool = read_val_pool(workspace.output("task_pool"), dataset)
    job = TrainingJob(
        objective=Episodic(learner=learner, train=train, val_pool=val_pool),
        settings=TrainingSettings(n_steps=1000),
        checkpoints=NoCheckpoints(),
    )
    optimizer = job.new_optimizer()
    for step in range(job.settings.n_steps):
        yield training_step(job, optimizer, step)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.frozen", description=__doc__)
    parser.add_argument("--photos", type=int, default=1000, help="how many are drawn")
    parser.add_argument("--episodes", type=int, default=1000, help="scored with each head")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="print the section and write nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
