"""From the artifacts of a finished run to a version of the registered model.

Not a stage of dvc.yaml: registering is a side effect, which a cached stage would leave out.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.config import Params
from kshot.data.edits import in_force
from kshot.data.items.contract import ItemKind
from kshot.data.packed import INFO_FILE, SPLITS, PackedDataset
from kshot.data.weights import read_record
from kshot.errors import StageError
from kshot.evaluation.cost import Cost, measure_cost
from kshot.model import load_model
from kshot.project.git import ask_git
from kshot.registry.receipt import NEXT, check_receipt, item_stages, plain
from kshot.runtime.cpu import cpu_name
from kshot.serving.call import QUERY_ITEMS, SUPPORT_ITEMS, SUPPORT_LABELS
from kshot.serving.classifier import FewShotClassifier
from kshot.tracking import (
    COST,
    LoggedFile,
    MetricPoint,
    ModelFiles,
    Registration,
    RunRecord,
    TrainingData,
    register,
    registered,
)
from kshot.workspace import Workspace

_ATTACHED = (
    "validate/facts.json",
    "validate/report.html",
    "task_pool/pools.json",
    "pretrain/metrics.json",
    "pseudo_labels/metrics.json",
    "meta_train/history.parquet",
    "meta_train/metrics.json",
    "evaluate/metrics.json",
    "evaluate/episodes.parquet",
    "evaluate/per_class.parquet",
    "evaluate/confusions.parquet",
    "evaluate/reference.parquet",
    "evaluate/report.html",
    "evaluate/sections.html",
)
_SOURCES = ("src", "flows", "mlflow")
_RECORDED = (":(exclude)dvc.lock", ":(exclude)params.yaml", ":(exclude)data.dvc")  # each run has its own, logged


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What the stages left under artifacts/, read."""

    lock_sha256: str
    dataset: PackedDataset
    facts: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    history: pd.DataFrame
    weights_sha256: str
    difficulty: Mapping[str, str]  # what hard classes were drawn by; nothing, where none were
    speed: Mapping[str, float]  # nothing, where the training ran on another machine

    @property
    def pool_hashes(self) -> dict[str, str]:
        """Hash of each frozen meta_test pool, by setting such as 5w1s."""
        return {result["setting"]: result["pool_hash"] for result in self.evaluation["results"]}


def register_run(root: Path, params: Params, flow_run_id: str | None) -> Registration:
    """Register the run that dvc.lock in `root` is the receipt of; doing it again changes nothing.

    Raises StageError when dvc.lock or an artifact is missing, or when an artifact or a setting is not
    the one that dvc.lock names.
    """
    run = read_finished_run(root, params)
    if known := registered(params.register.model_name, run.lock_sha256, root):
        return known  # before what is measured, which takes longer than all the rest
    tags = _lineage(root, params, run, flow_run_id)
    evaluation, example, cost = run.evaluation, input_example(run.dataset.item), _cost(root, params, run.dataset)
    record = RunRecord(
        root=root,
        model_name=params.register.model_name,
        run_name=f"{evaluation['algorithm']}-{evaluation['backbone']}-{run.lock_sha256[:8]}",
        dvc_lock_sha256=run.lock_sha256,
        params=plain(params),
        metrics=_metrics(run, cost),
        history=tuple(_history(run.history)),
        tags=tags,
        files=_files(root, run.dataset, params),
        data=TrainingData(
            name=params.dataset.name,
            content_hash=run.dataset.content_hash,
            source={"path": f"data/{params.dataset.name}", "pointer": "data.dvc", "origin": run.dataset.info.source},
        ),
        model=ModelFiles(
            folder=Workspace(root).model,
            weights_sha256=run.weights_sha256,
            code=_needed(Workspace(root).model_code, root),
            input_example=example,
            expected=FewShotClassifier.load(Workspace(root).model).answer(example).to_numpy(),
        ),
        model_card=model_card(root, params, run, cost, tags),
    )
    return register(record)


def read_finished_run(root: Path, params: Params) -> FinishedRun:
    """Read artifacts/ and check them against dvc.lock."""
    lock_bytes = _needed(Workspace(root).receipt, root).read_bytes()
    for name in _ATTACHED:
        _needed(Workspace(root).artifacts / name, root)
    check_receipt(root, params)
    dataset = PackedDataset.open(Workspace(root).dataset(params.dataset.name))
    pools = _read_json(Workspace(root).output("task_pool") / "pools.json")
    if pools["data_hash"] != dataset.content_hash:
        raise StageError(
            f"{dataset.folder} has content hash {dataset.content_hash[:12]}; this run used {pools['data_hash'][:12]}; "
            f"need them equal; {NEXT}"
        )
    weights_sha256 = sha256(_needed(Workspace(root).model / "weights.safetensors", root).read_bytes()).hexdigest()
    return FinishedRun(
        lock_sha256=sha256(lock_bytes).hexdigest(),
        dataset=dataset,
        facts=_read_json(Workspace(root).output("validate") / "facts.json"),
        training=_read_json(Workspace(root).output("meta_train") / "metrics.json"),
        evaluation=_read_json(Workspace(root).output("evaluate") / "metrics.json"),
        history=pd.read_parquet(Workspace(root).output("meta_train") / "history.parquet"),
        weights_sha256=weights_sha256,
        difficulty=pools["meta_train"].get("difficulty", {}),
        speed=_speed(root, weights_sha256),
    )


def input_example(item: ItemKind) -> dict[str, NDArray[Any]]:
    """Example items in the shape of a call: 2 support items, one per class, and 1 query."""
    items = item.example(3)
    return {
        SUPPORT_ITEMS: items[:2],
        SUPPORT_LABELS: np.array([0, 1], dtype=np.int64),
        QUERY_ITEMS: items[2:],
    }


def model_card(root: Path, params: Params, run: FinishedRun, cost: Cost, lineage: Mapping[str, str]) -> str:
    """The card in Markdown, from mlflow/model_card.md.j2."""
    template = _needed(Workspace(root).model_card, root)
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  it makes Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    info = run.dataset.info
    return environment.get_template(template.name).render(
        model_name=params.register.model_name,
        params=params,
        dataset=info,
        n_items=run.dataset.n_stored,
        edits=[edit for edit, holds in zip(info.edits, in_force(info.edits), strict=True) if holds],
        n_classes={split: len(run.dataset.class_ids(split)) for split in SPLITS},
        warnings=[check for check in run.facts["checks"] if not check["passed"]],
        training=run.training,
        evaluation=run.evaluation,
        cost=cost,
        lineage=lineage,
        non_transductive=NON_TRANSDUCTIVE,
    )


def _lineage(root: Path, params: Params, run: FinishedRun, flow_run_id: str | None) -> dict[str, str]:
    changes = ask_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *_RECORDED)
    untracked = ask_git(root, "ls-files", "--others", "--exclude-standard", "--", *_SOURCES)  # a clone would lack them
    return {
        "git_commit": ask_git(root, "rev-parse", "HEAD") or "none",
        "git_dirty": "unknown" if changes is None else str(bool(changes or untracked)).lower(),
        "dvc_lock_sha256": run.lock_sha256,
        "data_hash": run.dataset.content_hash,
        "pool_hashes": json.dumps(run.pool_hashes, sort_keys=True),
        "held_out_episodes": run.evaluation["episodes_id"],
        "flow_run_id": flow_run_id or "none",
        "kshot_version": _kshot_version(),
        "cross_domain": json.dumps(list(params.cross_domain)),
        "seeds": json.dumps(list(params.seeds)),
        "cost_measured_on": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "training_device": str(run.training.get("device", "unknown")),
        **_of_weights(root, params),
        **run.difficulty,
    }


def _of_weights(root: Path, params: Params) -> dict[str, str]:
    """Where the pretrained weights are from; nothing without any."""
    if not params.backbone.weights:
        return {}
    record = read_record(Workspace(root).pretrained_weights(params.backbone.weights))
    return {
        "weights": params.backbone.weights,
        "weights_source": record.source,
        "weights_licence": record.licence or "not said",
        "weights_sha256": record.sha256,
    }


def _kshot_version() -> str:
    try:
        return installed_version("kshot")
    except PackageNotFoundError:
        return "not installed"


def _metrics(run: FinishedRun, cost: Cost) -> dict[str, float]:
    """Held-out results as meta_test/5w1s/accuracy, or .../accuracy_transductive, and numbers of the training."""
    metrics: dict[str, float] = {}
    for result in run.evaluation["results"]:
        suffix = "" if result["mode"] == NON_TRANSDUCTIVE else "_transductive"
        prefix = f"meta_test/{result['setting']}"
        metrics[f"{prefix}/accuracy{suffix}"] = result["accuracy"]
        metrics[f"{prefix}/ci95{suffix}"] = result["ci95"]
        metrics[f"{prefix}/calibration_error{suffix}"] = result["calibration_error"]
        for name, score in result["baselines"].items():
            metrics[f"{prefix}/baseline/{name.replace(',', '')}"] = score["accuracy"]
    numbers = {name: float(value) for name, value in run.training.items() if isinstance(value, int | float)}
    numbers |= run.speed
    metrics |= {f"{COST}{name}": float(value) for name, value in asdict(cost).items()}
    return metrics | {f"meta_train/final/{name}": value for name, value in numbers.items()}


def _cost(root: Path, params: Params, dataset: PackedDataset) -> Cost:
    """The cost in the first setting, measured here and now: an artifact would have to be the same everywhere."""
    kind = next(iter(params.task_pool.meta_test.kinds().values()))
    return measure_cost(load_model(Workspace(root).model).learner, dataset.item, kind.shape)


def _speed(root: Path, weights_sha256: str) -> dict[str, float]:
    """Throughput and memory of the training that made these weights, where it ran here."""
    path = Workspace(root).training_speed
    measured = _read_json(path) if path.exists() else {}
    return measured if measured.pop("weights_sha256", None) == weights_sha256 else {}


def _history(history: pd.DataFrame) -> Iterator[MetricPoint]:
    for name in history.columns.drop("step"):
        for step, value in zip(history["step"], history[name], strict=True):
            yield MetricPoint(name=f"meta_train/{name}", value=float(value), step=int(step))


def _files(root: Path, dataset: PackedDataset, params: Params) -> tuple[LoggedFile, ...]:
    artifacts = Workspace(root).artifacts
    plots = sorted((artifacts / "evaluate" / "plots").glob("*.png"))
    items = item_stages(params.cross_domain, params.seeds)
    data_files = (INFO_FILE, dataset.info.manifest, *dataset.info.edit_files)
    others = [Workspace(root).output(stage) / "metrics.json" for stage in items]
    attached = [*(artifacts / name for name in _ATTACHED), *plots, *others]
    return (
        LoggedFile(path=Workspace(root).params, folder=""),
        LoggedFile(path=Workspace(root).receipt, folder=""),
        *(LoggedFile(path=pointer, folder="") for pointer in [Workspace(root).data_pointer] if pointer.exists()),
        *(LoggedFile(path=dataset.folder / name, folder="data") for name in data_files),
        *(LoggedFile(path=path, folder=path.relative_to(artifacts).parent.as_posix()) for path in attached),
    )


def _needed(path: Path, root: Path) -> Path:
    if not path.exists():
        raise StageError(f"no {path.relative_to(root)} in {root.resolve()}; need a finished run to register; {NEXT}")
    return path


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
