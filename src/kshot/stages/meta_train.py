"""Meta-train the configured learner, in one process or several, and keep the best weights on meta_val."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import TypeAdapter

import kshot
from kshot.algorithms import Learner
from kshot.algorithms.learner import NON_TRANSDUCTIVE, TRANSDUCTIVE
from kshot.backbones.layers.native import native_compiler, native_sources
from kshot.config import MetaTrainSettings, Params, load_params
from kshot.data.gather import image_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_val_pool, train_pool
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import FrozenPool
from kshot.episodes.sampling import EpisodeKind
from kshot.errors import EpisodeError, KshotError, TrainingError
from kshot.model import ModelConfig, build_learner, save_model
from kshot.runtime.lifeline import die_with_parent
from kshot.runtime.lines import LiveLines, silent_lines
from kshot.runtime.workers import choose_device, joined_workers, torchrun_command
from kshot.seeding import stream_key
from kshot.stages.process import set_up_process
from kshot.training.checkpoints import CheckpointFolder
from kshot.training.loop import Progress, TrainingJob, episodes_per_s, meta_train, peak_memory_bytes
from kshot.workspace import Workspace

_NOT_OF_THE_WEIGHTS = ("n_processes", "device", "keep_freed_memory", "seeds")
CPU, CPU_WITH_KERNELS = "cpu", "cpu with native kernels"


def run(params: Params, workspace: Workspace) -> None:
    """Train here, or launch torchrun where several processes are asked for.

    What cannot be trained as configured is refused before any worker starts.
    """
    set_up_process(params.meta_train)
    if params.meta_train.native_kernels and native_compiler() is None:
        _print_line("native kernels: not built here for this processor; training without; next: kshot kernels")
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    check_ways(build_learner(_model_config(params, dataset)), params.task_pool.kinds())
    choose_device(params.meta_train.device)
    val_pool = read_val_pool(workspace.output("task_pool"), dataset)
    shutil.rmtree(workspace.other_seeds, ignore_errors=True)
    seeds = dict.fromkeys((params.seed, *params.meta_train.seeds))
    checkpoints = [_checkpoints(workspace, replace(params, seed=seed), dataset, val_pool) for seed in seeds]
    for seed in seeds:
        if params.meta_train.seeds:
            print(f"training from seed {seed}", flush=True)
        _train_here_or_in_workers(params, seed, workspace)
    for folder in checkpoints:  # only now: a seed that is done is not trained again after a kill in the next one
        shutil.rmtree(folder, ignore_errors=True)  # not there where the source changed meanwhile


def _train_here_or_in_workers(params: Params, seed: int, workspace: Workspace) -> None:
    n_processes = params.meta_train.n_processes
    if n_processes == 1:
        train(params, seed, workspace)
        return
    refusal = workspace.training_refusal
    refusal.unlink(missing_ok=True)
    command, environment = torchrun_command(__name__, n_processes, str(params.seed), str(seed))
    code = subprocess.run(command, env=environment, cwd=workspace.root, check=False).returncode
    if refusal.exists():
        raise TrainingError(refusal.read_text(encoding="utf-8"))
    if code != 0:
        raise TrainingError(f"torchrun with {n_processes} processes exited with {code}; its lines above say why")


def check_ways(learner: Learner[Any], kinds: Mapping[str, tuple[EpisodeKind, ...]]) -> None:
    """Raise EpisodeError when a configured episode has more classes than the learner can tell apart."""
    for split, shape in ((split, kind.shape) for split, group in kinds.items() for kind in group):
        if learner.max_way is not None and shape.n_way > learner.max_way:
            raise EpisodeError(
                f"{split} asks for {shape}; this learner, trained {learner.max_way}-way, tells at most "
                f"{learner.max_way} classes apart; next: raise task_pool.meta_train.shape.n_way or take the setting out"
            )


def train(params: Params, seed: int, workspace: Workspace) -> None:
    """One worker's part; the first worker writes model/, history.parquet and metrics.json.

    From another seed than `params.seed` only the model is kept, as seeds/SEED.
    """
    params, main_seed = replace(params, seed=seed), params.seed
    settings = params.meta_train
    set_up_process(settings)
    device = choose_device(settings.device)
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    config = _model_config(params, dataset)
    gather = image_gather(dataset, device)
    val_pool = read_val_pool(workspace.output("task_pool"), dataset)
    with joined_workers(device) as workers:
        job = TrainingJob(
            learner=build_learner(config, init_seed=int(stream_key(params.seed, "init")) % 2**63).to(device),
            train=EpisodeLoader.of_training(train_pool(dataset, params.task_pool, seed=params.seed), gather),
            val=EpisodeLoader(pool=val_pool, gather=gather),
            val_pool=val_pool,
            settings=settings.training,
            checkpoints=CheckpointFolder(_checkpoints(workspace, params, dataset, val_pool)),
            workers=workers,
            lines=LiveLines(_print_line) if workers.is_first else silent_lines(),
        )
        progress = meta_train(job)
    if workers.is_first:
        folder = workspace.output("meta_train")
        if seed == main_seed:
            save_model(workspace.model, job.learner, config)
            _write_speed(workspace, job, progress)  # first: writing tables takes memory of its own
            _write_history(folder, job, progress)
        else:
            save_model(workspace.other_seeds / str(seed), job.learner, config)


def _model_config(params: Params, dataset: PackedDataset) -> ModelConfig:
    return ModelConfig(
        algorithm=params.meta_train.algorithm,
        backbone=params.meta_train.backbone,
        item=dataset.item,
        train_shape=params.task_pool.meta_train.shape,
    )


def _checkpoints(workspace: Workspace, params: Params, dataset: PackedDataset, val_pool: FrozenPool) -> Path:
    return workspace.checkpoints / _training_key(params, dataset, val_pool)


def _training_key(params: Params, dataset: PackedDataset, val_pool: FrozenPool) -> str:
    """Names everything that the weights depend on, so that no other run resumes from this one's checkpoints.

    Where and in how many processes is left out: a run may go on elsewhere.
    """
    settings = TypeAdapter(MetaTrainSettings).dump_python(params.meta_train, mode="json")
    description = {
        "seed": params.seed,
        "meta_train": {name: value for name, value in settings.items() if name not in _NOT_OF_THE_WEIGHTS},
        "train_pool": repr(params.task_pool.meta_train),
        "val_pool": val_pool.hash,
        "data": dataset.content_hash,
        "source": _source_hash(),
        "native_kernels": native_compiler(),
    }
    return sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _source_hash() -> str:
    package = Path(kshot.__file__).parent
    digest = sha256()
    for path in sorted([*package.rglob("*.py"), *native_sources()]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write_history(folder: Path, job: TrainingJob, progress: Progress) -> None:
    """No clock enters these files: the same training gives the same bytes."""
    pq.write_table(pa.Table.from_pylist([asdict(point) for point in progress.history]), folder / "history.parquet")
    best = max(progress.history, key=lambda point: point.val_accuracy)
    metrics = {
        "best_step": best.step,
        "best_val_accuracy": best.val_accuracy,
        "steps": progress.step,
        "val_mode": TRANSDUCTIVE if job.learner.transductive else NON_TRANSDUCTIVE,
        "processes": job.workers.world_size,
        "threads": torch.get_num_threads(),
        "device": _device_name(job.device),
        "stopped_early": progress.step < job.settings.n_steps,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _device_name(device: torch.device) -> str:
    """What computed, as far as the bits of the weights depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    compiler = native_compiler()
    return f"{CPU_WITH_KERNELS} by {compiler}" if compiler else CPU


def _write_speed(workspace: Workspace, job: TrainingJob, progress: Progress) -> None:
    """Beside the artifacts and not among them: their bytes are the same on every machine."""
    speed = {
        "weights_sha256": sha256(workspace.weights.read_bytes()).hexdigest(),
        "episodes_per_s": episodes_per_s(progress, job.settings),
        "peak_memory_bytes": peak_memory_bytes(job.device),
    }
    path = workspace.training_speed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(speed, indent=2) + "\n", encoding="utf-8")


def _print_line(line: str) -> None:
    print(line, flush=True)


def _main() -> None:
    """A torchrun worker. A refusal is left for `run` to raise: torchrun would only try it again."""
    die_with_parent()
    workspace = Workspace(Path())
    try:
        main_seed, seed = map(int, sys.argv[1:])
        train(replace(load_params(workspace.params), seed=main_seed), seed, workspace)
    except KshotError as error:
        workspace.training_refusal.parent.mkdir(exist_ok=True)
        workspace.training_refusal.write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    _main()
