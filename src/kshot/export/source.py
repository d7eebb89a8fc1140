"""The model that is exported, and where from."""

import json
from dataclasses import dataclass
from pathlib import Path

from kshot.config import load_params
from kshot.errors import ModelError
from kshot.model import SavedModel, load_model
from kshot.serving.classifier import check_weights
from kshot.workspace import Workspace

_REGISTRY_SCHEME = "models:/"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A saved model. `version` is None for one of a folder, whose name is then that of the folder."""

    name: str
    version: int | None
    weights_sha256: str
    saved: SavedModel

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name} version {self.version}"

    @property
    def folder_name(self) -> str:
        return self.name if self.version is None else f"{self.name}-{self.version}"


def find_source(model: str, registered_name: str, root: Path) -> Source:
    """What `model` names: the number of a version, models:/NAME@ALIAS, models:/NAME/VERSION or a model folder.

    A number is one of `registered_name`, or of register.model_name where that is empty. Raises ModelError.
    """
    if registered_name and not model.isdecimal():
        raise ModelError(
            f"found {model!r} with --model {registered_name}; need a number there; "
            f"next: kshot export 1 --model {registered_name}, or leave --model out"
        )
    if model.isdecimal():
        model = (
            f"{_REGISTRY_SCHEME}{registered_name or load_params(Workspace(root).params).register.model_name}/{model}"
        )
    if not model.startswith(_REGISTRY_SCHEME):
        folder = Path(model)
        return Source(
            name=folder.resolve().name, version=None, saved=load_model(folder), weights_sha256=_sha256(folder)
        )
    from kshot.tracking import fetch_model  # its import takes seconds, and a folder needs none of it

    found = fetch_model(model, root)
    check_weights(found.folder / "weights.safetensors", found.weights_sha256)
    saved = load_model(found.folder)
    return Source(name=found.name, version=found.version, saved=saved, weights_sha256=found.weights_sha256)


def _sha256(folder: Path) -> str:
    """Of the weights, by which `load_model` has checked them."""
    return str(json.loads((folder / "model.json").read_text(encoding="utf-8"))["weights_sha256"])
