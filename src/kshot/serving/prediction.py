"""What `kshot predict` does: from image files to one predicted class per query image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot.data.items.contract import ItemKind
from kshot.errors import DataError
from kshot.serving.classifier import FewShotClassifier

_REFUSED_SHOWN = 5
_REGISTRY_SCHEME = "models:/"


@dataclass(frozen=True, kw_only=True)
class PredictedImage:
    """`probability` is that of `class_name`, a fraction."""

    file: Path
    class_name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class RefusedImage:
    file: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class PredictionReport:
    """`model` says which model answered: models:/NAME/VERSION or the folder."""

    model: str
    classes: tuple[str, ...]
    predicted: tuple[PredictedImage, ...]
    refused: tuple[RefusedImage, ...]


def predict_files(model: str, support: Path, queries: Sequence[Path], *, root: Path) -> PredictionReport:
    """Classify the image files `queries` (folders are searched) by the class folders under `support`.

    `model` is models:/NAME@ALIAS, models:/NAME/VERSION or a model folder. A query that cannot be read is
    listed as refused; a support image that cannot be read, or no readable query, raises DataError.
    """
    support_files = _support_files(support)
    query_files = list(dict.fromkeys(file for query in queries for file in _files(query)))
    if not query_files:
        raise DataError(
            f"no query image in {', '.join(map(str, queries)) or 'nothing'}; need files or a folder of images"
        )
    name, classifier = load_classifier(model, root)
    support_items, refused = _read(support_files, classifier.item)
    if refused:
        raise DataError(f"refused as support: {_listed(refused)}; need readable images; next: remove or replace them")
    query_items, refused = _read(query_files, classifier.item)
    if not query_items:
        raise DataError(f"refused as query: {_listed(refused)}; need at least one readable image")
    classes = [file.relative_to(support).parent.as_posix() for file in support_items]
    prediction = classifier.adapt(_stacked(support_items.values()), classes).classify(_stacked(query_items.values()))
    best = prediction.probabilities.argmax(axis=1)
    predicted = (
        PredictedImage(file=file, class_name=str(prediction.labels[n]), probability=float(row[n]))
        for file, n, row in zip(query_items, best, prediction.probabilities, strict=True)
    )
    return PredictionReport(
        model=name,
        classes=tuple(map(str, prediction.labels)),
        predicted=tuple(predicted),
        refused=tuple(refused),
    )


def load_classifier(model: str, root: Path) -> tuple[str, FewShotClassifier]:
    """The classifier that `model` names, and its full name; the registry is that of the project folder `root`."""
    if not model.startswith(_REGISTRY_SCHEME):
        return model, FewShotClassifier.load(Path(model))
    from kshot.tracking import fetch_model  # its import takes seconds, and a folder needs none of it

    registered = fetch_model(model, root)
    classifier = FewShotClassifier.load(registered.folder, weights_sha256=registered.weights_sha256)
    return f"models:/{registered.name}/{registered.version}", classifier


def _support_files(support: Path) -> list[Path]:
    if not support.is_dir():
        raise DataError(f"no folder {support}; need one with a folder of images for each class")
    files = _files(support)
    loose = [file for file in files if file.parent == support]
    if loose:
        raise DataError(f"{loose[0]} is in no class folder; need {support}/CLASS/IMAGE")
    if not files:
        raise DataError(f"no image in {support}; need {support}/CLASS/IMAGE for at least 2 classes")
    return files


def _files(path: Path) -> list[Path]:
    """The file, or every file under the folder that is not hidden, in order of name."""
    if path.is_dir():
        below = (file for file in path.rglob("*") if file.is_file())
        return sorted(file for file in below if not any(p.startswith(".") for p in file.relative_to(path).parts))
    if not path.exists():
        raise DataError(f"no file or folder {path}; need images to classify")
    return [path]


def _read(files: Sequence[Path], item: ItemKind) -> tuple[dict[Path, NDArray[Any]], list[RefusedImage]]:
    items: dict[Path, NDArray[Any]] = {}
    refused = []
    for file in files:
        try:
            items[file] = item.read(file).item
        except DataError as error:
            refused.append(RefusedImage(file=file, reason=str(error)))
    return items, refused


def _stacked(items: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(list(items))


def _listed(refused: Sequence[RefusedImage]) -> str:
    shown = "; ".join(f"{image.file} ({image.reason})" for image in refused[:_REFUSED_SHOWN])
    more = len(refused) - _REFUSED_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
