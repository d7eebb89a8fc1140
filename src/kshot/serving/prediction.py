"""What `kshot predict` does: from image files to one predicted class per query image."""

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot.data.folders import LeftOut, Tree, check_class_folders, read_tree, without_picture_folders
from kshot.data.items.contract import ItemKind
from kshot.errors import DataError
from kshot.serving.classifier import FewShotClassifier

_REFUSED_SHOWN = 5
_REPLACE = "next: remove or replace them"
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
    """`model` says which model answered: models:/NAME/VERSION or the folder. `left_out` are files of no image.

    `modes` are the normalisation modes in which the model is scored; it answers in the non-transductive one.
    """

    model: str
    classes: tuple[str, ...]
    predicted: tuple[PredictedImage, ...]
    refused: tuple[RefusedImage, ...]
    left_out: tuple[LeftOut, ...]
    modes: tuple[str, ...]


def predict_files(model: str, support: Path, queries: Sequence[Path], *, root: Path) -> PredictionReport:
    """Classify the image files `queries` (folders are searched) by the class folders under `support`.

    `model` is models:/NAME@ALIAS, models:/NAME/VERSION or a model folder. Which files of a folder are images, and which
    folders are classes, follows the rule of ingest; a query that is given by itself is read whatever its name is.
    A query that cannot be read is listed as refused. Raise DataError for a query that is not there, a support image
    that cannot be read, a class without images, and where no query can be read.
    """
    shown = _support(support)
    given, refused, left_out = _queries(queries)
    if not given and not refused:
        raise DataError(
            f"no query image in {', '.join(map(str, queries)) or 'nothing'}; need files or a folder of images"
        )
    name, classifier = load_classifier(model, root)
    support_items, classes = _labelled(shown, classifier.item)
    query_items, damaged = _read(given, classifier.item)
    refused = [*refused, *damaged]
    if not query_items:
        raise DataError(f"refused as query: {_listed(refused)}; need at least one readable image; {_REPLACE}")
    prediction = classifier.adapt(support_items, classes).classify(_stacked(query_items.values()))
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
        left_out=(*shown.left_out, *left_out),
        modes=classifier.modes,
    )


def read_support(folder: Path, item: ItemKind) -> tuple[NDArray[Any], list[str]]:
    """The items (S, *item) in the class folders under `folder` and the class of each, by the rule of `predict_files`.

    Raises DataError for one that cannot be read, and for a class without any.
    """
    return _labelled(_support(folder), item)


def load_classifier(model: str, root: Path) -> tuple[str, FewShotClassifier]:
    """The classifier that `model` names, and its full name; the registry is that of the project folder `root`."""
    if not model.startswith(_REGISTRY_SCHEME):
        return model, FewShotClassifier.load(Path(model))
    from kshot.tracking import fetch_model  # its import takes seconds, and a folder needs none of it

    registered = fetch_model(model, root)
    classifier = FewShotClassifier.load(registered.folder, weights_sha256=registered.weights_sha256)
    return f"models:/{registered.name}/{registered.version}", classifier


def _support(folder: Path) -> Tree:
    """What lies in the class folders, in all of which there are images. Raise DataError."""
    if not os.path.isdir(folder):
        raise DataError(f"no folder {folder}; need one with a folder of images for each class; {_look_around(folder)}")
    tree = read_tree(folder)
    if tree.refused:
        refused = [RefusedImage(file=folder / row.source, reason=row.reason) for row in tree.refused]
        raise DataError(f"refused as support: {_listed(refused)}; need readable images; {_REPLACE}")
    loose = next((file for file in tree.files if not file.folders), None)
    if loose is not None:
        raise DataError(f"{loose.path} is in no class folder; need {folder}/CLASS/IMAGE; next: move it into one")
    classes = {file.folders for file in tree.files}
    if not classes:
        raise DataError(f"no image in {folder}; need {folder}/CLASS/IMAGE for at least 2 classes")
    check_class_folders(without_picture_folders(classes).values())
    for empty in tree.empty:
        if not any(empty[: len(parts)] == parts for parts in classes):
            raise DataError(
                f"no image in the class folder {folder.joinpath(*empty)}; need at least one for each class; "
                "next: put images into it, or remove it"
            )
    return tree


def _labelled(shown: Tree, item: ItemKind) -> tuple[NDArray[Any], list[str]]:
    items, damaged = _read([file.path for file in shown.files], item)
    if damaged:
        raise DataError(f"refused as support: {_listed(damaged)}; need readable images; {_REPLACE}")
    meant = without_picture_folders(dict.fromkeys(file.folders for file in shown.files))
    return _stacked(items.values()), ["/".join(meant[file.folders]) for file in shown.files]


def _queries(given: Sequence[Path]) -> tuple[list[Path], list[RefusedImage], list[LeftOut]]:
    """The files to read, each once, and what is refused and left out of folders. Raise DataError."""
    files: dict[Path, None] = {}
    refused: list[RefusedImage] = []
    left_out: list[LeftOut] = []
    for path in given:
        if os.path.isdir(path):
            tree = read_tree(path)
            files.update((file.path, None) for file in tree.files)
            refused.extend(RefusedImage(file=path / row.source, reason=row.reason) for row in tree.refused)
            left_out.extend(tree.left_out)
        elif os.path.exists(path):
            files[path] = None
        else:
            found = f"{path} is a link to nothing" if path.is_symlink() else f"no file or folder {path}"
            raise DataError(f"{found}; need images to classify; {_look_around(path)}")
    return list(files), refused, left_out


def _look_around(path: Path) -> str:
    """The command that lists what there is, instead of what `path` names."""
    there = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    return f"next: ls {shlex.quote(str(there))}"


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
