"""Versions of registered models, found by alias or number, with their files."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from safetensors.numpy import load_file

from kshot.errors import ModelError
from kshot.tracking.runs import CHAMPION, EXPECTED, SMOKE_TEST, aliases
from kshot.tracking.store import LOST, all_pages, default_tracking_uri, first_line, open_store
from kshot.tracking.turn import is_lock
from kshot.workspace import Workspace

_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
_NAMES_SHOWN = 10
REASON_TAG = "promotion_reason"  # of a version: why it was, or was not, promoted


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A registered version with its files here: `folder` holds model.json and weights.safetensors."""

    name: str
    version: int
    folder: Path
    weights_sha256: str
    mlflow_run_id: str
    tags: Mapping[str, str]

    @property
    def algorithm(self) -> str:
        """By what means it answers, as one text: two models may do so by others on the same weights."""
        config = json.loads((self.folder / "model.json").read_text(encoding="utf-8"))["config"]
        return json.dumps([config["algorithm"], config.get("test_time")], sort_keys=True)


def fetch_model(model_uri: str, root: Path, tracking_uri: str | None = None) -> RegisteredModel:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION names, downloaded where it is not local.

    Raises ModelError with the names that are known when there is no such model, version or alias.
    """
    name, alias, number = _parse_model_uri(model_uri)
    check_registry(root, tracking_uri)
    with open_store(root, tracking_uri) as client:
        version = find_version(client, name, alias, number)
        return RegisteredModel(
            name=name,
            version=int(version.version),
            folder=_download(f"models:/{name}/{version.version}", root) / "artifacts" / "model",
            weights_sha256=_weights_sha256(version),
            mlflow_run_id=str(version.run_id),
            tags=dict(version.tags),
        )


def version_with(name: str, alias: str, root: Path) -> int | None:
    """The version that has an alias; None where none has it. Raises ModelError for an unknown model."""
    check_registry(root)
    with open_store(root) as client:
        check_name(client, name)
        number = aliases(client, name).get(alias)
        return None if number is None else int(number)


def fetch_run_files(mlflow_run_id: str, names: Iterable[str], folder: Path, root: Path) -> None:
    """Copy the artifacts `names` of a run into `folder`. Raises ModelError where one is lost."""
    with open_store(root):
        for name in names:
            download(f"runs:/{mlflow_run_id}/{name}", folder / Path(name).parent)


def recorded_call(mlflow_run_id: str, folder: Path, root: Path) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """The call that a version was registered with, by the names of its inputs, and what it answered then."""
    with open_store(root):
        recorded = load_file(download(f"runs:/{mlflow_run_id}/{SMOKE_TEST}", folder))
    expected = recorded.pop(EXPECTED)
    return recorded, expected


def run_metrics(mlflow_run_id: str, root: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    with open_store(root) as client:
        return dict(client.get_run(mlflow_run_id).data.metrics)


def attach(mlflow_run_id: str, path: Path, root: Path) -> None:
    """Put a file among the artifacts of a run, under its own name."""
    with open_store(root) as client:
        client.log_artifact(mlflow_run_id, str(path))


def check_registry(root: Path, tracking_uri: str | None = None) -> None:
    """Raise ModelError where no registry was made yet, rather than make an empty one."""
    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(root)
    if address == default_tracking_uri(root) and not Workspace(root).registry_database.exists():
        raise ModelError(f"no model registry at {address}; next: make demo, or set MLFLOW_TRACKING_URI")


def check_name(client: MlflowClient, name: str) -> None:
    """Raise ModelError, with names that are known, where there is no registered model of this one."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != _NOT_THERE:
            raise
        known = sorted(model.name for model in all_pages(client.search_registered_models) if not is_lock(model.name))
        raise ModelError(f"no registered model {name!r}; known: {_listed(known)}; next: kshot register") from None


def find_version(client: MlflowClient, name: str, alias: str | None, number: str | None) -> ModelVersion:
    """The version with this alias or number. Raises ModelError with the ones that are known."""
    check_name(client, name)
    by_alias = aliases(client, name)
    if alias == CHAMPION and alias not in by_alias:
        raise _no_champion(client, name)
    if alias is not None and alias not in by_alias:
        raise ModelError(
            f"{name} has no alias {alias!r}; known: {_listed(sorted(by_alias))}; "
            f"next: models:/{name}/VERSION, or kshot register"
        )
    wanted = by_alias[alias] if alias is not None else str(number)
    try:
        return client.get_model_version(name, wanted)
    except MlflowException as error:
        if error.error_code != _NOT_THERE:
            raise
    known = sorted(int(version.version) for version in all_pages(client.search_model_versions, f"name = '{name}'"))
    raise ModelError(f"{name} has no version {wanted}; known: {_listed(known)}; next: models:/{name}@{CHAMPION}")


def _no_champion(client: MlflowClient, name: str) -> ModelError:
    """Of a model whose versions were all refused, or not decided on yet."""
    versions = sorted(all_pages(client.search_model_versions, f"name = '{name}'"), key=lambda one: int(one.version))
    if not versions:
        return ModelError(f"{name} has no version; next: kshot register")
    number, reason = versions[-1].version, versions[-1].tags.get(REASON_TAG)
    why = f"was not promoted ({reason})" if reason else "has not been decided on"
    return ModelError(
        f"{name} has no champion: version {number} {why}; "
        f"next: kshot promote --version {number}, or use models:/{name}/{number} as it is"
    )


def download(uri: str, target: Path | None) -> Path:
    """The files of `uri` in `target`; None: where they lie, when that is on this machine."""
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=None if target is None else str(target)))
    except (OSError, MlflowException) as error:
        advice = LOST if is_local() else "next: kshot doctor"
        raise ModelError(f"the files of {uri} cannot be fetched ({first_line(error)}); {advice}") from error


def _parse_model_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version number; exactly one of the last two is given."""
    match = re.fullmatch(r"models:/([A-Za-z0-9][\w.-]*)(?:@([\w.-]+)|/(\d+))", uri)
    if match is None:
        raise ModelError(f"{uri!r} names no registered model; need models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2], match[3]


def _weights_sha256(version: ModelVersion) -> str:
    if "weights_sha256" not in version.tags:
        raise ModelError(
            f"{version.name} version {version.version} has no tag weights_sha256; "
            "need a version that kshot registered; next: kshot register"
        )
    return str(version.tags["weights_sha256"])


def _download(model_uri: str, root: Path) -> Path:
    """The folder of a model's files: where they lie when that is on this machine, else a copy under .kshot."""
    here = Workspace(root.resolve()).fetched_models / model_uri.removeprefix("models:/").replace("/", "-")
    return download(model_uri, None if is_local() else here)


def is_local() -> bool:
    """Whether the files of the open store lie on this machine."""
    return mlflow.get_tracking_uri().startswith("sqlite:")


def _listed(known: Sequence[object]) -> str:
    """The last few in full: of versions these are the newest."""
    more = f"{len(known) - _NAMES_SHOWN} more, " if len(known) > _NAMES_SHOWN else ""
    return more + (", ".join(map(str, known[-_NAMES_SHOWN:])) or "none")
