"""The model that a service answers with: where it comes from, and whether it answers as it should."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kshot.errors import ModelError
from kshot.serving.classifier import FewShotClassifier

_TOLERANCE = 1e-4  # of a probability: another CPU rounds otherwise
_REGISTRY_SCHEME = "models:/"


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """`name` is models:/NAME/VERSION, or a folder; `version` its number, or the start of the hash of its weights."""

    name: str
    version: str
    classifier: FewShotClassifier


class ModelSource(Protocol):
    def version(self) -> str:
        """The version that is wanted now; asking costs little."""
        ...

    def load(self) -> ServedModel:
        """That version, once it has answered as it did at registration. Raises ModelError where it does not."""
        ...


def model_source(address: str, root: Path) -> ModelSource:
    """Of models:/NAME@ALIAS, which may move, models:/NAME/VERSION, or a model folder."""
    if not address.startswith(_REGISTRY_SCHEME):
        return _Folder(Path(address))
    name, _, alias = address.removeprefix(_REGISTRY_SCHEME).partition("@")
    return _Alias(address, name, alias, root) if alias else _Version(address, root)


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def version(self) -> str:
        return str(self._folder)

    def load(self) -> ServedModel:
        classifier = FewShotClassifier.load(self._folder)
        _check_example(classifier, str(self._folder))
        return ServedModel(name=str(self._folder), version=self._folder.name, classifier=classifier)


class _Version:
    def __init__(self, address: str, root: Path) -> None:
        self._address, self._root = address, root

    def version(self) -> str:
        return self._address.rpartition("/")[2]

    def load(self) -> ServedModel:
        return _fetched(self._address, self._root)


class _Alias:
    def __init__(self, address: str, name: str, alias: str, root: Path) -> None:
        self._address, self._name, self._alias, self._root = address, name, alias, root

    def version(self) -> str:
        from kshot.tracking import version_with

        found = version_with(self._name, self._alias, self._root)
        if found is None:
            raise ModelError(f"{self._name} has no {self._alias}; next: kshot promote, or kshot history")
        return str(found)

    def load(self) -> ServedModel:
        return _fetched(self._address, self._root)


def _fetched(address: str, root: Path) -> ServedModel:
    from kshot.tracking import fetch_model, recorded_call

    registered = fetch_model(address, root)
    name = f"models:/{registered.name}/{registered.version}"
    classifier = FewShotClassifier.load(registered.folder, weights_sha256=registered.weights_sha256)
    with tempfile.TemporaryDirectory() as folder:
        call, expected = recorded_call(registered.mlflow_run_id, Path(folder), root)
    _check_answer(classifier, name, call, expected)
    return ServedModel(name=name, version=str(registered.version), classifier=classifier)


def _check_answer(classifier: FewShotClassifier, name: str, call: dict[str, Any], expected: Any) -> None:
    found = classifier.answer(call).to_numpy()
    if found.shape != expected.shape or not np.allclose(found, expected, atol=_TOLERANCE):
        raise ModelError(f"{name} does not answer its recorded call as at registration; next: kshot rollback")


def _check_example(classifier: FewShotClassifier, name: str) -> None:
    """Of a model without a recorded call: that it answers at all."""
    items = classifier.item.example(4)
    found = classifier.adapt(items, [0, 1, 0, 1]).classify(items).probabilities
    if not np.isfinite(found).all():
        raise ModelError(f"{name} answers with numbers that are not finite; next: kshot train")
