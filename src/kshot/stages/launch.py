"""A training as params.yaml configures it: what the stages that train have in common.

It runs in this process, or in several that torchrun starts; each of these runs the stage's own command.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from kshot.algorithms import AlgorithmConfig
from kshot.algorithms.answering import normalization_mode
from kshot.algorithms.learner import Learner, TransferLearner
from kshot.backbones.layers.native import native_compiler
from kshot.config import Params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import check_difficulty, difficulty_of, read_partitions, read_val_pool
from kshot.episodes.labels import ClusterLabels
from kshot.errors import ConfigError, KshotError, TrainingError
from kshot.evaluation.features import KeptItems
from kshot.model import ModelConfig, build_learner
from kshot.runtime.cpu import check_bfloat16
from kshot.runtime.error_file import error_file, leave_error
from kshot.runtime.files import json_bytes
from kshot.runtime.lines import LiveLines, silent_lines
from kshot.runtime.process import device_name, set_up_process
from kshot.runtime.workers import HOST_RANK, Hosts, choose_device, in_worker, joined_workers, torchrun_command
from kshot.training.fit import ModelTraining, Trained, check_ways, fit, init_seed
from kshot.training.loop import TrainingSettings, episodes_per_s
from kshot.workspace import Workspace
from kshot.yaml_file import read_yaml


def training_of(params: Params, dataset: PackedDataset, workspace: Workspace, *, seed: int) -> ModelTraining:
    """The meta-training that params.yaml describes, from any seed."""
    settings, by_clusters = params.meta_train, isinstance(params.task_pool.meta_train.labels, ClusterLabels)
    config = replace(
        model_config(params, dataset, settings.algorithm), adapter=settings.adapter, test_time=settings.test_time
    )
    if not params.task_pool.meta_train.has_given_labels:
        _check_draws_episodes(build_learner(config), params)
        config = replace(config, n_train_classes=None)
    if settings.training.n_steps == 0:
        config = replace(config, n_train_classes=None)  # the model is without a classifier that nothing trained
    return ModelTraining(
        config=config,
        loss=settings.loss,
        settings=settings.training,
        task_pool=params.task_pool,
        seed=seed,
        init_seed=init_seed(seed),
        augmentation=settings.augment,
        partitions=read_partitions(workspace.output("pseudo_labels"), dataset) if by_clusters else None,
        initial=workspace.pretrained_model if settings.initial == "pretrained" else None,
        ensemble=settings.ensemble,
    )


def _check_draws_episodes(learner: Learner[Any], params: Params) -> None:
    """Raise ConfigError for a learner that no episodes train: it would ask for the labels of meta_train."""
    if isinstance(learner, TransferLearner):
        raise ConfigError(
            f"task_pool.meta_train.labels is {params.task_pool.meta_train.labels.name}, and "
            f"{params.meta_train.algorithm.name} is trained on batches of the labelled classes; need an algorithm that "
            "is trained on episodes; next: set meta_train.algorithm: {name: protonet}"
        )


def model_config(params: Params, dataset: PackedDataset, algorithm: AlgorithmConfig) -> ModelConfig:
    return ModelConfig(
        algorithm=algorithm,
        backbone=params.backbone,
        item=dataset.item,
        train_shape=params.task_pool.meta_train.shape,
        n_train_classes=len(dataset.class_ids("meta_train")) * (len(params.task_pool.meta_train.views) + 1),
    )


def train(
    stage: str, training: ModelTraining, params: Params, workspace: Workspace, dataset: PackedDataset
) -> Trained | None:
    """Train here, or launch torchrun where several processes are asked for.

    `stage` is NAME or NAME@ITEM. None in a process that is not to write the outputs: where the workers have done it
    when this returns, and in all workers but the first. Raises the error that a worker left, and TrainingError while
    another process trains the same stage of the workspace.
    """
    with nullcontext() if in_worker() else _alone(stage, workspace):
        return _train(stage, training, params, workspace, dataset)


def _train(
    stage: str, training: ModelTraining, params: Params, workspace: Workspace, dataset: PackedDataset
) -> Trained | None:
    check_ways(build_learner(training.config), params.task_pool.kinds())
    set_up_process(params.process)
    device = choose_device(params.process.device)
    if training.settings.precision == "bfloat16" and device.type == "cpu":
        _print_line(check_bfloat16(forced=params.process.force_precision))
    val_pool = read_val_pool(workspace.output("task_pool"), dataset)
    check_difficulty(workspace.output("task_pool"), dataset, params.task_pool)
    hosts = Hosts.from_environment(params.process.n_hosts)
    if (params.process.n_processes > 1 or hosts) and not in_worker():
        _train_in_workers(stage, params.process.n_processes, hosts, workspace)
        return None
    if params.process.native_kernels and native_compiler() is None:
        _print_line("native kernels: not built here for this processor; training without; next: kshot kernels")
    gather = item_gather(dataset, device)
    changes_items = params.task_pool.meta_train.views or not training.augmentation.changes_nothing
    keeps_features = params.backbone.freeze == "all" and not changes_items
    checkpoints = workspace.checkpoints / _training_key(stage, training, params, workspace, dataset, val_pool.hash)
    try:
        with joined_workers(device) as workers:
            trained = fit(
                training,
                dataset,
                KeptItems(gather, dataset, workspace.features) if keeps_features else gather,
                val_pool,
                device=device,
                checkpoints=checkpoints,
                workers=workers,
                lines=LiveLines(_print_line) if workers.is_first else silent_lines(),
                check_memory=params.process.check_memory,
            )
    except KshotError as error:
        if not in_worker():
            raise
        leave_error(error)
        sys.exit(0)  # torchrun would only try it again
    return trained if workers.is_first else None


@contextmanager
def _alone(stage: str, workspace: Workspace) -> Iterator[None]:
    """While no other process does the same; the lock of one that was killed is free."""
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    host = os.environ.get(HOST_RANK, "0")  # hosts of one training may share the folder
    lock = FileLock(workspace.checkpoints / f"{stage}.{host}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            f"another process is in the stage {stage} of {workspace.root}; need one at a time; next: wait for it to "
            "end, or stop it: a later run goes on from its last checkpoint"
        ) from None
    try:
        yield
    finally:
        lock.release()


def forget_checkpoints(trained: Trained) -> None:
    """Remove the checkpoints of a training whose model is written."""
    shutil.rmtree(trained.checkpoints, ignore_errors=True)


def write_history(folder: Path, trained: Trained) -> None:
    """history.parquet and metrics.json. They hold no times: the same training gives the same bytes."""
    job, progress = trained.job, trained.progress
    pq.write_table(pa.Table.from_pylist([asdict(point) for point in progress.history]), folder / "history.parquet")
    best = max(progress.history, key=lambda point: point.val_accuracy)
    metrics = {
        "best_step": best.step,
        "best_val_accuracy": best.val_accuracy,
        "steps": progress.step,
        "val_mode": normalization_mode(trained.model.learner),
        "processes": job.workers.world_size,
        "threads": torch.get_num_threads(),
        "device": device_name(job.device),
        "stopped_early": progress.step < job.settings.n_steps,
    }
    (folder / "metrics.json").write_bytes(json_bytes(metrics))


def write_speed(workspace: Workspace, trained: Trained) -> None:
    """Beside the artifacts and not among them: their bytes are the same on every machine."""
    speed = {
        "weights_sha256": sha256(workspace.weights.read_bytes()).hexdigest(),
        "episodes_per_s": episodes_per_s(trained.progress, trained.job.settings),
        "peak_memory_bytes": trained.peak_memory_bytes,
    }
    workspace.training_speed.parent.mkdir(parents=True, exist_ok=True)
    workspace.training_speed.write_text(json.dumps(speed, indent=2) + "\n", encoding="utf-8")


def _train_in_workers(stage: str, n_processes: int, hosts: Hosts | None, workspace: Workspace) -> None:
    command, environment = torchrun_command("kshot", n_processes, "stage", *stage.split("@"), hosts=hosts)
    with error_file() as file:
        code = subprocess.run(command, env=environment | file.environment, cwd=workspace.root, check=False).returncode
        left = file.read()
    if left is not None and (error := left.as_error()) is not None:  # a fault may be one that a restart overcame
        raise error
    if code != 0:
        raise TrainingError(f"torchrun with {n_processes} processes exited with {code}; its lines above say why")


def _training_key(
    stage: str,
    training: ModelTraining,
    params: Params,
    workspace: Workspace,
    dataset: PackedDataset,
    val_pool_hash: str,
) -> str:
    """Names everything that the weights depend on, so that no other run resumes from this one's checkpoints.

    Where and in how many processes is left out: a run may go on elsewhere.
    """
    initial = None if training.initial is None else sha256((training.initial / "weights.safetensors").read_bytes())
    difficulty = difficulty_of(dataset, training.task_pool)
    description = {
        "model": TypeAdapter(ModelConfig).dump_python(training.config, mode="json"),
        "training": TypeAdapter(TrainingSettings).dump_python(training.settings, mode="json"),
        "loss": repr(training.loss),
        "augmentation": repr(training.augmentation),
        "pretext": repr(training.pretext),
        "ensemble": repr(training.ensemble),
        "seeds": [training.seed, training.init_seed],
        "initial": initial and initial.hexdigest(),
        "weights": training.weights and training.weights.record.sha256,
        "train_pool": repr(training.task_pool.meta_train),
        "difficulty": difficulty and difficulty.sha256,
        "partitions": training.partitions and training.partitions.hash,
        "val_pool": val_pool_hash,
        "data": dataset.content_hash,
        "source": source_hash(stage.split("@")[0], params, workspace),
        "native_kernels": native_compiler(),
    }
    return sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def source_hash(stage: str, params: Params, workspace: Workspace) -> str:
    """Hash of the source files that dvc.yaml names as dependencies of the stage; without dvc.yaml, of all of kshot."""
    package = Path(__file__).parent.parent
    files = {package} if not workspace.graph.exists() else _source_deps(stage, params, workspace)
    digest = sha256()
    for path in sorted(file for named in files for file in ([named] if named.is_file() else named.rglob("*"))):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _source_deps(stage: str, params: Params, workspace: Workspace) -> set[Path]:
    described: dict[str, Any] = read_yaml(workspace.graph)["stages"].get(stage, {})
    described = described.get("do", described)
    plain = TypeAdapter(Params).dump_python(params, mode="json")
    named = (re.sub(r"\$\{([\w.]+)\}", partial(_value, plain), dep) for dep in described.get("deps", ()))
    return {workspace.root / path for path in named if path.startswith("src/")}


def _value(params: dict[str, Any], reference: re.Match[str]) -> str:
    value: Any = params
    for key in reference[1].split("."):
        value = value.get(key, {}) if isinstance(value, dict) else value
    return str(value)


def _print_line(line: str) -> None:
    print(line, flush=True)
