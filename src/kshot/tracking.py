"""Runs and the model registry: the only import of mlflow, which takes seconds.

Registering is idempotent, keyed by the SHA-256 of dvc.lock. Its steps, in order:

    run        params, tags, data, files, model, metrics; FINISHED only when it holds them all
    version    one transaction: the key, the lineage, the score and the model card
    alias      challenger; champion where `decide` says so, and promotion_reason says why
    tag        registration: complete, last

An earlier call may have died after any of them. The next one finds the version, or the finished run, by
its key and goes on from there; a run that never finished is closed as FAILED and made anew.
"""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from time import time
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kshot.errors import ModelError, StageError

# mlflow reads the first while it is imported; the second would draw a bar for every copied file
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

CHAMPION, CHALLENGER = "champion", "challenger"
KEY_TAG = "dvc_lock_sha256"
_REASON_TAG, _STATE_TAG = "promotion_reason", "registration"
_EPISODES_TAG, _ACCURACY_TAG = "held_out_episodes", "held_out_accuracy"

_LOCK_TIMEOUT_S = 600.0
_MOVED = (
    "MLflow keeps absolute paths, so a project folder that was moved loses them; "
    "next: move it back, or move .kshot/mlflow.db away to begin a new registry"
)
_METRICS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100  # the most that MLflow takes in one request
_DIGEST_LENGTH = 36
_DESCRIPTION_LENGTH = 5000  # what the registry's column holds on a server database
_SERVING_PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "safetensors", "scipy", "torch")

_IMAGES = (-1, -1, -1, -1)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            TensorSpec(np.dtype(np.uint8), _IMAGES, "support_images"),
            TensorSpec(np.dtype(np.int64), (-1,), "support_labels"),
            TensorSpec(np.dtype(np.uint8), _IMAGES, "query_images"),
        ]
    ),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
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
    model; `input_example` maps each name of SIGNATURE to an array.
    """

    folder: Path
    weights_sha256: str
    code: Path
    input_example: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """Mean over settings of the non-transductive accuracy, a fraction, and the identity of the episodes."""

    episodes: str
    accuracy: float


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
    score: HeldOutScore


@dataclass(frozen=True, kw_only=True)
class Registration:
    """`alias` is None for an old version whose alias has gone to a newer one."""

    name: str
    version: int
    alias: str | None
    created: bool
    mlflow_run_id: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    alias: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A registered version with its files here: `folder` holds model.json and weights.safetensors."""

    name: str
    version: int
    folder: Path
    weights_sha256: str


def register(record: RunRecord, tracking_uri: str | None = None) -> Registration:
    """Log the run and make it one version of the registered model, unless that was done before.

    `tracking_uri` goes before MLFLOW_TRACKING_URI, and that before the SQLite file of `record.root`.
    """
    with _store(record.root, tracking_uri) as client:
        version = _find_version(client, record)
        created = version is None
        if version is None:
            version = _create_version(client, record)
        alias = _settle_alias(client, version)
        return Registration(
            name=record.model_name,
            version=int(version.version),
            alias=alias,
            created=created,
            mlflow_run_id=version.run_id or "",
        )


def decide(challenger: HeldOutScore, champion: HeldOutScore | None) -> Decision:
    """Which alias a new version gets. Only scores on the very same held-out episodes are compared."""
    if champion is None:
        return Decision(alias=CHAMPION, reason="there was no champion")
    if challenger.episodes != champion.episodes:
        return Decision(
            alias=CHALLENGER,
            reason=f"not compared: the champion was scored on held-out episodes {champion.episodes[:12]}, "
            f"this version on {challenger.episodes[:12]}",
        )
    scores = f"{challenger.accuracy:.2%}, the champion's {champion.accuracy:.2%} on the same held-out episodes"
    if challenger.accuracy >= champion.accuracy:
        return Decision(alias=CHAMPION, reason=f"not worse: {scores}")
    return Decision(alias=CHALLENGER, reason=f"worse: {scores}")


def default_tracking_uri(root: Path) -> str:
    """The SQLite file of the project folder `root`."""
    return f"sqlite:///{_state_folder(root) / 'mlflow.db'}"


def prepare_store(root: Path, tracking_uri: str | None = None) -> str:
    """Create or migrate the tracking database where needed, once among processes; return its address."""
    with _store(root, tracking_uri):
        return mlflow.get_tracking_uri()


def fetch_model(model_uri: str, root: Path, tracking_uri: str | None = None) -> RegisteredModel:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION names, downloaded where it is not local.

    Raises ModelError with the names that are known when there is no such model, version or alias.
    """
    name, alias, number = _parse_model_uri(model_uri)
    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(root)
    if address == default_tracking_uri(root) and not (_state_folder(root) / "mlflow.db").exists():
        raise ModelError(f"no model registry at {address}; next: make demo, or set MLFLOW_TRACKING_URI")
    with _store(root, tracking_uri) as client:
        version = _resolve_version(client, name, alias, number)
        return RegisteredModel(
            name=name,
            version=int(version.version),
            folder=_download(f"models:/{name}/{version.version}", root) / "artifacts" / "model",
            weights_sha256=_weights_sha256(version),
        )


@contextmanager
def _store(root: Path, tracking_uri: str | None) -> Iterator[MlflowClient]:
    """A client of the tracking store, alone among the processes of this project folder.

    The lock keeps two first starts from migrating one database at once, and two registrations of one
    run from making two versions. MLflow's fluent calls read a global address: it is put back after.
    """
    state = _state_folder(root)
    state.mkdir(parents=True, exist_ok=True)
    outer_uri, outer_path = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    logger = logging.getLogger("mlflow")
    outer_level = logger.level
    try:
        with FileLock(state / "mlflow.lock", timeout=_LOCK_TIMEOUT_S):
            logger.setLevel(logging.WARNING)
            mlflow.set_tracking_uri(tracking_uri or outer_uri or default_tracking_uri(root))
            try:
                yield MlflowClient()
            finally:
                mlflow.set_tracking_uri(outer_uri)  # type: ignore[arg-type]  # None puts the default back
                logger.setLevel(outer_level)
                sys.path[:] = outer_path  # checking a logged model puts its temporary code folder here
    except Timeout:
        raise StageError(
            f"another process held {state / 'mlflow.lock'} for {_LOCK_TIMEOUT_S:.0f} s; "
            "need it free; next: wait for that process, then run this again"
        ) from None
    except MlflowException as error:
        raise StageError(f"MLflow refused: {_first_line(error)}; next: kshot doctor") from error


def _state_folder(root: Path) -> Path:
    return root.resolve() / ".kshot"


def _find_version(client: MlflowClient, record: RunRecord) -> ModelVersion | None:
    """The version of this run, when an earlier call came that far."""
    found = client.search_model_versions(f"tags.{KEY_TAG} = '{record.dvc_lock_sha256}'")
    ours = [version for version in found if version.name == record.model_name]
    return min(ours, key=lambda version: int(version.version), default=None)


def _create_version(client: MlflowClient, record: RunRecord) -> ModelVersion:
    experiment_id = _experiment(client, record)
    run_id, model_id = _finished_run(client, experiment_id, record) or _log_run(client, experiment_id, record)
    try:
        client.create_registered_model(record.model_name, description="Few-shot classifier; see each version's card.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        record.model_name,
        source=f"models:/{model_id}",
        run_id=run_id,
        model_id=model_id,
        tags=_version_tags(record),
        description=_description(record.model_card),
    )


def _experiment(client: MlflowClient, record: RunRecord) -> str:
    """The experiment named like the model; a local one keeps its artifacts under .kshot."""
    local = mlflow.get_tracking_uri() == default_tracking_uri(record.root)
    artifacts = (_state_folder(record.root) / "mlartifacts").as_uri() if local else None
    known = client.get_experiment_by_name(record.model_name)
    if known is None:
        return str(client.create_experiment(record.model_name, artifact_location=artifacts))
    if local and known.artifact_location != artifacts:
        raise StageError(f"the registry keeps its files in {known.artifact_location}, need {artifacts}; {_MOVED}")
    return str(known.experiment_id)


def _finished_run(client: MlflowClient, experiment_id: str, record: RunRecord) -> tuple[str, str] | None:
    """Run and model of an earlier call that died before it made the version; others are closed as FAILED."""
    runs = client.search_runs([experiment_id], f"tags.{KEY_TAG} = '{record.dvc_lock_sha256}'")
    finished = None
    for run in runs:
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "FAILED")
        elif run.info.status == "FINISHED" and run.outputs and run.outputs.model_outputs:
            finished = (run.info.run_id, run.outputs.model_outputs[0].model_id)
    return finished


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
        model_id = _log_model(record.model)
        for metrics in _in_parts(_metrics(record, model_id), _METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=metrics)
    return run_id, model_id


def _log_model(model: ModelFiles) -> str:
    """The pyfunc model: one file of code, this package's source, safetensors and JSON. Nothing is pickled."""
    with _no_bytecode():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(model.code),
            artifacts={"model": str(model.folder)},
            code_paths=[str(Path(__file__).resolve().parent)],
            pip_requirements=serving_requirements(),
            signature=SIGNATURE,
            input_example=dict(model.input_example),
            model_config={"weights_sha256": model.weights_sha256},
        )
    return str(info.model_id)


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
        _EPISODES_TAG: record.score.episodes,
        _ACCURACY_TAG: repr(record.score.accuracy),
    }


def _settle_alias(client: MlflowClient, version: ModelVersion) -> str | None:
    """Give a new version its alias; of a complete one, only say which it has."""
    name, number = version.name, str(version.version)
    if _STATE_TAG not in version.tags:
        decision = _decision(client, version)
        client.set_model_version_tag(name, number, _REASON_TAG, decision.reason)
        client.set_registered_model_alias(name, CHALLENGER, number)
        if decision.alias == CHAMPION:
            client.set_registered_model_alias(name, CHAMPION, number)
            client.delete_registered_model_alias(name, CHALLENGER)
        client.set_model_version_tag(name, number, _STATE_TAG, "complete")
    held = [alias for alias, holder in _aliases(client, name).items() if holder == number]
    return min(held, key=lambda alias: (alias != CHAMPION, alias), default=None)


def _decision(client: MlflowClient, version: ModelVersion) -> Decision:
    champion_number = _aliases(client, version.name).get(CHAMPION)
    if champion_number is None:
        return decide(_score(version), None)
    if champion_number == str(version.version):  # an earlier call died after it had moved the alias
        return Decision(alias=CHAMPION, reason=version.tags[_REASON_TAG])
    return decide(_score(version), _score(client.get_model_version(version.name, champion_number)))


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias. Searching for versions does not tell: its answers come without aliases."""
    return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}


def _score(version: ModelVersion) -> HeldOutScore:
    """What a version's tags say; one that was registered by other means compares to nothing."""
    tags = version.tags
    return HeldOutScore(episodes=tags.get(_EPISODES_TAG, "none"), accuracy=float(tags.get(_ACCURACY_TAG, "nan")))


def _parse_model_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version number; exactly one of the last two is given."""
    match = re.fullmatch(r"models:/([A-Za-z0-9][\w.-]*)(?:@([\w.-]+)|/(\d+))", uri)
    if match is None:
        raise ModelError(f"{uri!r} names no registered model; need models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2], match[3]


def _resolve_version(client: MlflowClient, name: str, alias: str | None, number: str | None) -> ModelVersion:
    known = sorted(model.name for model in client.search_registered_models())
    if name not in known:
        raise ModelError(f"no registered model {name!r}; known: {', '.join(known) or 'none'}; next: kshot register")
    aliases = _aliases(client, name)
    if alias is not None and alias not in aliases:
        raise ModelError(
            f"{name} has no alias {alias!r}; known: {', '.join(sorted(aliases)) or 'none'}; "
            f"next: models:/{name}/VERSION, or kshot register"
        )
    wanted = aliases[alias] if alias is not None else str(number)
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if wanted not in versions:
        raise ModelError(
            f"{name} has no version {wanted}; known: {', '.join(sorted(versions, key=int)) or 'none'}; "
            f"next: models:/{name}@{CHAMPION}"
        )
    return versions[wanted]


def _weights_sha256(version: ModelVersion) -> str:
    if "weights_sha256" not in version.tags:
        raise ModelError(
            f"{version.name} version {version.version} has no tag weights_sha256; "
            "need a version that kshot registered; next: kshot register"
        )
    return str(version.tags["weights_sha256"])


def _download(model_uri: str, root: Path) -> Path:
    """The folder of a model's files: where they lie when that is on this machine, else a copy under .kshot."""
    local = mlflow.get_tracking_uri().startswith("sqlite:")
    target = None if local else _state_folder(root) / "models" / model_uri.removeprefix("models:/").replace("/", "-")
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=None if target is None else str(target)))
    except (OSError, MlflowException) as error:
        advice = _MOVED if local else "next: kshot doctor"
        raise ModelError(f"the files of {model_uri} cannot be fetched ({_first_line(error)}); {advice}") from error


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
