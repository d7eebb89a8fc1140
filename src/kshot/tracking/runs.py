"""A finished run, and the version of the registered model that it becomes.

Registering is idempotent, keyed by the SHA-256 of dvc.lock. Its steps, in order:

    run        params, tags, data, files, model, metrics; FINISHED only when it holds them all
    version    one transaction: the key, the lineage and the model card
    alias      challenger; what makes a champion of it is in `champion.py`
    tag        registration: complete, last

An earlier call may have died after any of them. The next one finds the version, or the finished run, by
its key and goes on from there; a run that never finished is closed as FAILED and made anew.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep, time
from typing import Any, TypeVar

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from safetensors.numpy import save_file

from kshot.errors import StageError
from kshot.tracking.store import LOST, all_pages, default_tracking_uri, open_store
from kshot.tracking.turn import PAUSES_S, is_lost
from kshot.workspace import Workspace

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
KEY_TAG = "dvc_lock_sha256"
SMOKE_TEST = "smoke_test.safetensors"
EXPECTED = "expected"
COST = "cost/"  # the prefix of what a model costs, among the metrics of its run
_STATE_TAG = "registration"
ARTIFACT_ROOT = "MLFLOW_DEFAULT_ARTIFACT_ROOT"  # the name that MLflow's own server has for it

_METRICS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100  # the most that MLflow takes in one request
_DIGEST_LENGTH = 36
_DESCRIPTION_LENGTH = 5000  # what the registry's column holds on a server database
_SERVING_PACKAGES = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "torch",
    "typing_extensions",
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    name: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True)
class LoggedFile:
    """A file, and the folder among the run's artifacts that gets a copy; "" is the top."""

    path: Path
    folder: str


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The dataset of a run: only its identity goes to MLflow, never its bytes."""

    name: str
    content_hash: str
    source: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What the registered model is made of.

    `folder` holds model.json and weights.safetensors; `code` is the file that MLflow runs to load the
    model; `input_example` has an array for each input by its name, and `expected` is the output for it.
    """

    folder: Path
    weights_sha256: str
    code: Path
    input_example: Mapping[str, NDArray[Any]]
    expected: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything about a run that goes to MLflow. `root` is the project folder, `params` nested settings."""

    root: Path
    model_name: str
    run_name: str
    dvc_lock_sha256: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    history: tuple[MetricPoint, ...]
    tags: Mapping[str, str]
    files: tuple[LoggedFile, ...]
    data: TrainingData
    model: ModelFiles
    model_card: str


@dataclass(frozen=True, kw_only=True)
class Registration:
    """`alias` is None for an old version whose alias has gone to a newer one."""

    name: str
    version: int
    alias: str | None
    created: bool
    mlflow_run_id: str


def register(record: RunRecord, tracking_uri: str | None = None) -> Registration:
    """Log the run and make it one version of the registered model, unless that was done before.

    `tracking_uri` takes precedence over MLFLOW_TRACKING_URI, and that over the SQLite file of `record.root`.
    """
    with open_store(record.root, tracking_uri, change=record.model_name) as client:
        known = _find_version(client, record.model_name, record.dvc_lock_sha256)
        return _settled(client, known or _create_version(client, record), created=known is None)


def registered(name: str, dvc_lock_sha256: str, root: Path, tracking_uri: str | None = None) -> Registration | None:
    """The version of `name` that the run of this dvc.lock became; None where `register` has something left to do."""
    with open_store(root, tracking_uri) as client:
        known = _find_version(client, name, dvc_lock_sha256)
        return _settled(client, known, created=False) if known is not None and _is_complete(known) else None


def _settled(client: MlflowClient, version: ModelVersion, *, created: bool) -> Registration:
    return Registration(
        name=version.name,
        version=int(version.version),
        alias=_settle_alias(client, version),
        created=created,
        mlflow_run_id=version.run_id or "",
    )


def _find_version(client: MlflowClient, name: str, dvc_lock_sha256: str) -> ModelVersion | None:
    """The version of this run, if an earlier call got that far."""
    found = all_pages(client.search_model_versions, f"tags.{KEY_TAG} = '{dvc_lock_sha256}'")
    ours = [version for version in found if version.name == name]
    return min(ours, key=lambda version: int(version.version), default=None)


def _create_version(client: MlflowClient, record: RunRecord) -> ModelVersion:
    experiment_id = _experiment(client, record)
    _close_open_runs(client, experiment_id, record)
    run_id, model_id = _finished_run(client, experiment_id, record) or _log_run(client, experiment_id, record)
    _close_open_runs(client, experiment_id, record)  # there is one where the answer to its creation was lost
    try:
        client.create_registered_model(record.model_name, description="Few-shot classifier; see each version's card.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return _the_version(client, record, run_id, model_id)


def _the_version(client: MlflowClient, record: RunRecord, run_id: str, model_id: str) -> ModelVersion:
    """The one version of this run, whoever made it.

    Where the answer to the creation was lost, the version may be there or not: only a look tells. And a process that
    was stopped right before it sent the request may find, after it, a version of the one that took its turn: then the
    lower one counts, as for everybody else.
    """
    for pause_s in PAUSES_S:
        try:
            created = client.create_model_version(
                record.model_name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags=_version_tags(record),
                description=_description(record.model_card),
            )
        except MlflowException as error:
            known = _find_version(client, record.model_name, record.dvc_lock_sha256) if is_lost(error) else None
            if known is not None:
                return known
            if pause_s is None or not is_lost(error):
                raise
            sleep(pause_s)
        else:
            break
    first = _find_version(client, record.model_name, record.dvc_lock_sha256)
    if first is None or int(first.version) == int(created.version):
        return created
    client.delete_model_version(record.model_name, str(created.version))
    return first


def _experiment(client: MlflowClient, record: RunRecord) -> str:
    """The experiment named like the model; a local one keeps its artifacts under .kshot.

    A tracking server says where artifacts go. A database does not: there `ARTIFACT_ROOT` has to.
    """
    address = mlflow.get_tracking_uri()
    local = address == default_tracking_uri(record.root)
    artifacts = Workspace(record.root.resolve()).registry_artifacts.as_uri() if local else os.environ.get(ARTIFACT_ROOT)
    known = client.get_experiment_by_name(record.model_name)
    if known is None and artifacts is None and not address.startswith("http"):
        raise StageError(
            f"MLFLOW_TRACKING_URI is a database, which says nothing of where files go; "
            f"next: set {ARTIFACT_ROOT} to a place that every machine reaches, such as s3://BUCKET/mlflow"
        )
    if known is None:
        return str(client.create_experiment(record.model_name, artifact_location=artifacts))
    if local and known.artifact_location != artifacts:
        raise StageError(f"the registry keeps its files in {known.artifact_location}, need {artifacts}; {LOST}")
    return str(known.experiment_id)


def _finished_run(client: MlflowClient, experiment_id: str, record: RunRecord) -> tuple[str, str] | None:
    """Run and model of an earlier call that died before it made the version."""
    finished = None
    for run in _runs(client, experiment_id, record):
        if run.info.status == "FINISHED" and run.outputs and run.outputs.model_outputs:
            finished = (run.info.run_id, run.outputs.model_outputs[0].model_id)
    return finished


def _close_open_runs(client: MlflowClient, experiment_id: str, record: RunRecord) -> None:
    """Close as FAILED what an earlier call left open: nobody but the holder of the lock works on this run."""
    for run in _runs(client, experiment_id, record):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "FAILED")


def _runs(client: MlflowClient, experiment_id: str, record: RunRecord) -> list[Run]:
    return list(all_pages(partial(client.search_runs, [experiment_id]), f"tags.{KEY_TAG} = '{record.dvc_lock_sha256}'"))


def _log_run(client: MlflowClient, experiment_id: str, record: RunRecord) -> tuple[str, str]:
    """A new run with everything in it, and the model that it holds."""
    tags = _version_tags(record) | {"mlflow.note.content": _description(record.model_card)}
    with mlflow.start_run(experiment_id=experiment_id, run_name=record.run_name, tags=tags) as run:
        run_id = run.info.run_id
        for params in _in_parts(_params(record), _PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params)
        client.log_inputs(run_id, datasets=[_dataset_input(record.data)])
        for file in record.files:
            mlflow.log_artifact(str(file.path), artifact_path=file.folder or None)
        mlflow.log_text(record.model_card, "model_card.md")
        _log_smoke_test(record.model)
        model_id = _log_model(record.model)
        for metrics in _in_parts(_metrics(record, model_id), _METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=metrics)
    return run_id, model_id


def _log_smoke_test(model: ModelFiles) -> None:
    """The example call with its answer, which a promotion asks the model that it loads back."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / SMOKE_TEST
        save_file({**model.input_example, EXPECTED: model.expected}, path)
        mlflow.log_artifact(str(path))


def _log_model(model: ModelFiles) -> str:
    """The pyfunc model: one file of code, this package's source, safetensors and JSON. Nothing is pickled."""
    with _no_bytecode():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(model.code),
            artifacts={"model": str(model.folder)},
            code_paths=[str(Path(__file__).resolve().parent.parent)],
            pip_requirements=serving_requirements(),
            signature=_signature(),
            input_example=dict(model.input_example),
            model_config={"weights_sha256": model.weights_sha256},
        )
    return str(info.model_id)


def _signature() -> ModelSignature:
    """Probabilities (Q, N) come out. What goes in is for the model itself to check.

    MLflow would refuse texts as labels, and lists, with the whole input in its message, and a scoring server would make
    texts of labels of several types. The mark says that the model's code knows its types, so that both pass it on.
    """
    signature = ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]))
    signature._is_signature_from_type_hint = True
    return signature


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """MLflow imports the copied source to check the model, before it uploads the folder that holds it."""
    outer = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = outer


def serving_requirements() -> list[str]:
    """What the model needs to be loaded, at the versions installed here; "+cpu" and the like left out."""
    return [f"{name}=={installed_version(name).partition('+')[0]}" for name in _SERVING_PACKAGES]


def _params(record: RunRecord) -> list[Param]:
    return [Param(name, value) for name, value in flatten(record.params).items()]


def _dataset_input(data: TrainingData) -> DatasetInput:
    dataset = Dataset(name=data.name, digest=_digest(data), source_type="dvc", source=json.dumps(dict(data.source)))
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "meta-training")])


def _digest(data: TrainingData) -> str:
    return data.content_hash[:_DIGEST_LENGTH]


def _metrics(record: RunRecord, model_id: str) -> list[Metric]:
    """Held-out results, tied to the model and the data, and the history of training."""
    now_ms = int(time() * 1000)
    about = {"model_id": model_id, "dataset_name": record.data.name, "dataset_digest": _digest(record.data)}
    results = [Metric(name, value, now_ms, 0, **about) for name, value in record.metrics.items()]
    history = [Metric(p.name, p.value, now_ms, p.step) for p in record.history if math.isfinite(p.value)]
    return results + history


def _version_tags(record: RunRecord) -> dict[str, str]:
    return {
        **record.tags,
        KEY_TAG: record.dvc_lock_sha256,
        "weights_sha256": record.model.weights_sha256,
    }


def _settle_alias(client: MlflowClient, version: ModelVersion) -> str | None:
    """Make a new version the challenger; for a complete one, only return which alias it has."""
    name, number = version.name, str(version.version)
    if not _is_complete(version):
        client.set_registered_model_alias(name, CHALLENGER, number)
        client.set_model_version_tag(name, number, _STATE_TAG, "complete")
    held = [alias for alias, holder in aliases(client, name).items() if holder == number]
    return min(held, key=lambda alias: (alias != CHAMPION, alias), default=None)


def _is_complete(version: ModelVersion) -> bool:
    return _STATE_TAG in version.tags


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias. A search for versions does not help: its answers come without aliases."""
    return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted.key -> text; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _in_parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _description(card: str) -> str:
    """The card where it fits into a description, else its beginning."""
    ending = "\n\n(cut here; whole in the run's artifact model_card.md)\n"
    return card if len(card) <= _DESCRIPTION_LENGTH else card[: _DESCRIPTION_LENGTH - len(ending)] + ending
