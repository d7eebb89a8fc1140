"""What `kshot export` does: a saved model as a folder that runs without kshot, checked against the model itself.

Shapes: S support items, Q query items, D features, N classes, *item one item.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from kshot.algorithms.learner import FeatureWise, Learner
from kshot.backbones.contract import items_at_once
from kshot.data.items import AnyItemKind
from kshot.episodes.episode import Support
from kshot.errors import ConfigError, DataError, ModelError
from kshot.export import runner
from kshot.export.exportable import CLASSIFIER, ENCODER, FEATURES, PROBABILITIES, Exportable, Files, Labelled
from kshot.export.held_out import HeldOut, held_out
from kshot.export.int8 import Embed, cost_of_int8, joined, of_cost, quantise
from kshot.export.learners import copies_of, recipe_of
from kshot.export.parity import parity
from kshot.export.programs import (
    OPSET,
    FixedClasses,
    FixedHead,
    Format,
    check_onnx_installed,
    constant,
    onnx_bytes,
    traced,
)
from kshot.export.source import find_source
from kshot.runtime.files import json_bytes, write_folder
from kshot.serving.prediction import read_support
from kshot.workspace import Workspace

DESCRIPTION, RUNNER, README, LABELS = "export.json", "kshot_runner.py", "README.txt", "labels.json"
_MOST_AT_ONCE = 256  # items that the runner gives the program together

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a model is to be exported. `support` is a folder of class folders: the classes are then fixed."""

    format: Format = "onnx"
    support: Path | None = None
    int8: bool = False
    to: Path | None = None


def export(model: str, wanted: Wanted, *, registered_name: str, root: Path, report: Report) -> Path:
    """Write the folder that `wanted` describes, say on `report` what is in it, and return it.

    Raises ConfigError where packages are missing, and ModelError where the model cannot be exported in this way, or
    where the export would answer otherwise than the model. Then nothing is written.
    """
    if wanted.int8 and wanted.format != "onnx":
        raise ConfigError("found --int8 with --format torch; need --format onnx for it, or no --int8")
    if wanted.format == "onnx":
        check_onnx_installed()
    source = find_source(model, registered_name, root)
    folder = wanted.to or Workspace(root).export(source.folder_name)
    _check_free(folder)
    exportable = Exportable(source=source, format=wanted.format)
    _check_possible(exportable, wanted)
    support = None if wanted.support is None else _read(wanted.support, exportable.item)
    with TemporaryDirectory() as work:
        files = _checked_files(exportable, support, Path(work), report)
        if wanted.int8:
            files = _with_int8(exportable, support, files, Path(work), root, report)
    files = files | {RUNNER: Path(runner.__file__).read_bytes(), README: _readme(exportable, support).encode()}
    write_folder(folder, files)
    report(f"{source} is exported to {folder}: {', '.join(sorted(files))}")
    if support is None and recipe_of(exportable.learner) is None:
        report(
            f"{exportable.algorithm} is not adapted by the runner, which gives features alone; "
            "next: --support FOLDER for a classifier of fixed classes"
        )
    return folder


def _check_free(folder: Path) -> None:
    """Raise ConfigError where what is in the folder is not an earlier export, which would be replaced."""
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something else than an export; need a new folder; next: another --to")


def _check_possible(exportable: Exportable, wanted: Wanted) -> None:
    if isinstance(exportable.learner, FeatureWise):
        return
    algorithm = f"{exportable.algorithm} has a network of its own for each set of classes"
    if wanted.support is None:
        raise ModelError(f"{algorithm}, and no encoder of all; need the classes; next: --support FOLDER")
    if wanted.int8:
        raise ModelError(f"{algorithm}, whose cost in int8 no episodes measure; need float32; next: leave --int8 out")


def _read(folder: Path, item: AnyItemKind) -> Labelled:
    items, classes = read_support(folder, item)
    return Labelled(items=items, classes=classes)


def _checked_files(exportable: Exportable, support: Labelled | None, work: Path, report: Report) -> Files:
    """The program, what belongs to it, and export.json with the largest differences to the model that were found."""
    if support is None:
        files = exportable.file_of(exportable.encoder, ENCODER, FEATURES) | _of_learner(exportable.learner)
    else:
        files = exportable.file_of(_fixed(exportable, support), CLASSIFIER, PROBABILITIES) | _of_labels(support)
    description = _description(exportable, support)
    _write(work, files | {DESCRIPTION: json_bytes(description)})
    found = parity(exportable, support, work)
    report(f"largest difference to the model: {found}")
    found.check(exportable)
    return files | {DESCRIPTION: json_bytes(description | {"parity": found.description})}


def _fixed(exportable: Exportable, support: Labelled) -> FixedClasses:
    x, y, n_way = support.numbered
    learner, item = exportable.learner, exportable.item
    with torch.no_grad():
        adapted = learner.adapt(Support(x=item.tensor(x)[None], y=y[None], n_way=n_way))
    return FixedClasses(learner, constant(adapted), item, exportable.temperature)


def _of_learner(learner: Learner[Any]) -> Files:
    """The tensors with which the runner adapts; nothing where it needs none."""
    recipe = recipe_of(learner)
    if recipe is None or not recipe.state:
        return {}
    buffer = BytesIO()
    np.savez(buffer, **recipe.arrays)
    return {"learner.npz": buffer.getvalue()}


def _of_labels(support: Labelled) -> Files:
    return {LABELS: json_bytes(np.unique(support.classes).tolist())}


def _description(exportable: Exportable, support: Labelled | None) -> dict[str, Any]:
    """export.json: what the runner reads, and where the export is from."""
    source, item = exportable.source, exportable.item
    recipe, backbone = recipe_of(exportable.learner), exportable.learner.backbone
    return {
        "model": {"name": source.name, "version": source.version, "weights_sha256": source.weights_sha256},
        "algorithm": exportable.algorithm,
        "backbone": source.saved.config.backbone.name,
        "item": item_description(item),
        "temperature": exportable.temperature,
        "items_at_once": min(items_at_once(backbone), _MOST_AT_ONCE),
        "learner": None if recipe is None or support is not None else recipe.description,
        "copies": asdict(copies_of(exportable.learner)),
        "support": support and {"items": len(support.items), "classes": len(set(support.classes))},
        "format": exportable.format,
        "opset": OPSET if exportable.format == "onnx" else None,
        "kshot_version": _version("kshot"),
        "torch_version": _version("torch"),
        "int8": None,
    }


def item_description(item: AnyItemKind) -> dict[str, Any]:
    """The settings of a kind of item, with its name, shape and type."""
    settings: dict[str, Any] = TypeAdapter(AnyItemKind).dump_python(item, mode="json")
    return settings | {"kind": item.kind, "shape": list(item.shape), "dtype": str(item.dtype)}


def _with_int8(
    exportable: Exportable, support: Labelled | None, files: Files, work: Path, root: Path, report: Report
) -> Files:
    """The files with the encoder in int8, and in export.json what that costs on the project's frozen episodes."""
    learner = exportable.learner
    assert isinstance(learner, FeatureWise)
    project = held_out(root, exportable.item)
    if isinstance(project, HeldOut):
        items, origin = project.training, "meta_train"
    elif support is not None:
        items, origin = support.items, "support"
    else:
        raise DataError(f"{project}; --int8 needs items of training for its ranges; next: --support FOLDER for others")
    _write(work, exportable.file_of(exportable.encoder, ENCODER, FEATURES))
    quantised = quantise(work / f"{ENCODER}.onnx", items)
    _write(work, {"int8.onnx": quantised})
    float32, int8 = runner.program(work / f"{ENCODER}.onnx"), runner.program(work / "int8.onnx")
    cost = cost_of_int8(learner.on_features(), project, float32, int8)
    report(f"int8: {cost}")
    files = files | {f"{ENCODER}.onnx": quantised}
    if support is not None:
        del files[f"{ENCODER}.onnx"]
        files[f"{CLASSIFIER}.onnx"] = joined(quantised, _head(exportable, support, int8))
    description = json.loads(files[DESCRIPTION])
    description["int8"] = {"calibration_items": len(items), "calibrated_on": origin, **of_cost(cost)}
    return files | {DESCRIPTION: json_bytes(description)}


def _head(exportable: Exportable, support: Labelled, embed: Embed) -> bytes:
    """The classes of the support set, learned from the features that `embed` makes: features -> probabilities."""
    learner = exportable.learner
    assert isinstance(learner, FeatureWise)
    on_features, (x, y, n_way) = learner.on_features(), support.numbered
    features = torch.from_numpy(embed(x.numpy()))
    with torch.no_grad():
        adapted = on_features.adapt(Support(x=features[None], y=y[None], n_way=n_way))
    head = FixedHead(on_features, constant(adapted), exportable.temperature)
    what = f"the head of {exportable.source} ({exportable.algorithm})"
    return onnx_bytes(traced(head, features[:2], what=what), given=FEATURES, found=PROBABILITIES, what=what)


def _readme(exportable: Exportable, support: Labelled | None) -> str:
    """README.txt: what this is, and the lines that use it."""
    config, item = exportable.source.saved.config, exportable.item
    needs = "onnxruntime" if exportable.format == "onnx" else "torch"
    if support is not None:
        runs = "FixedClassifier", 'labels, probabilities = classifier.classify(classifier.read("query"))'
    elif recipe_of(exportable.learner) is not None:
        runs = (
            "Classifier",
            (
                'adapted = classifier.adapt(classifier.read("a1", "a2", "b1", "b2"), ["a", "a", "b", "b"])\n'
                '    labels, probabilities = adapted.classify(classifier.read("query"))'
            ),
        )
    else:
        runs = "Classifier", 'features = classifier.features(classifier.read("query"))'
    name, lines = runs
    return f"""{exportable.source}: {exportable.algorithm} on {config.backbone.name}, for {item}.
Runs with numpy and {needs}, without kshot; `read` needs Pillow for pictures. In this folder:

    from kshot_runner import {name}

    classifier = {name}(".")
    {lines}

Items are arrays {item.dtype} (number, {", ".join(map(str, item.shape))}), where they are not read from files.
{DESCRIPTION} names the model, its weights by their SHA-256, and the largest difference to it that was found.
"""


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _version(package: str) -> str:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "not installed"
