"""What every backbone and algorithm promises of its export: it answers as the model does, or says what to do instead.

A new name in `BackboneConfig` or `AlgorithmConfig` is tested here without a further line.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from kshot.algorithms import MAMLConfig, ProtoNetConfig, RelationConfig
from kshot.algorithms.answering import NON_TRANSDUCTIVE, served
from kshot.algorithms.learner import FeatureWise
from kshot.backbones import Conv4Config, MLPConfig
from kshot.backbones.contract import calibrate
from kshot.backbones.layers.adapter import NoAdapter
from kshot.data.items import ImageKind
from kshot.errors import ModelError
from kshot.export.exporting import Wanted, export
from kshot.export.learners import recipe_of
from kshot.export.parity import PARITY
from kshot.model import ModelConfig, SavedModel, build_learner, load_model, save_model
from kshot.serving.classifier import FewShotClassifier
from tests.contracts.test_algorithms import CONFIGS, every_algorithm
from tests.contracts.test_backbones import ADAPTERS, configs
from tests.toy_episodes import SHAPE, image_items

GREY = ImageKind(image_size=16, channels=1)
N_CLASSES, SHOTS = 3, 2
FORMATS: tuple[Literal["onnx", "torch"], ...] = ("onnx", "torch")
SMALL = MLPConfig(widths=(16, 16))
SUPPORT = [10 * number + shot for number in range(N_CLASSES) for shot in range(SHOTS)]
QUERIES = [10 * number + 5 + one for number in range(N_CLASSES) for one in range(3)]
CLASSES = [f"class {number}" for number in range(N_CLASSES) for _ in range(SHOTS)]


def saved_at(folder: Path, algorithm: Any, backbone: Any, adapter: Any = None, **settings: Any) -> Path:
    """A model that tells the toy items apart somewhat: of random weights, with the statistics of the items."""
    config = ModelConfig(
        algorithm=algorithm,
        backbone=backbone,
        adapter=adapter or NoAdapter(),
        item=GREY,
        train_shape=SHAPE,
        n_train_classes=8,
        **settings,
    )
    learner = build_learner(config, init_seed=1)
    calibrate(learner.backbone, [GREY.tensor(torch.from_numpy(image_items()[:60]))])
    save_model(folder, SavedModel(learner=learner.eval(), config=config, temperatures={NON_TRANSDUCTIVE: 1.5}))
    return folder


def support_folder(root: Path) -> Path:
    for place, name in zip(SUPPORT, CLASSES, strict=True):
        path = root / "support" / name / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_items()[place][:, :, 0]).save(path)
    return root / "support"


def exported(model: Path, **wanted: Any) -> Path:
    folder = model.parent / "exports" / "-".join([model.name, *map(str, wanted.values())]).replace("/", "_")
    return export(
        str(model), Wanted(to=folder, **wanted), registered_name="", root=model.parent, report=lambda line: None
    )


def runner_in(folder: Path) -> ModuleType:
    """The runner as it lies beside a model, and not kshot's own."""
    found = importlib.util.spec_from_file_location("kshot_runner", folder / "kshot_runner.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def answers_of(model: Path) -> np.ndarray:
    """Probabilities (Q, N) of the model itself."""
    classifier = FewShotClassifier(load_model(model))
    probabilities = classifier.predict(image_items()[SUPPORT], CLASSES, image_items()[QUERIES]).probabilities
    assert probabilities.std() > 1e-3  # a model that cannot choose would be equal to any other
    return probabilities


def check_answers(found: Any, model: Path) -> None:
    labels, probabilities = found
    assert labels.tolist() == sorted(set(CLASSES))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, answers_of(model), rtol=0, atol=PARITY)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("backbone", configs(), ids=lambda config: config.name)
def test_an_encoder_with_the_runner_learns_classes_as_the_model_does(
    backbone: Any, format_: Literal["onnx", "torch"], tmp_path: Path
) -> None:
    model = saved_at(tmp_path / "model", ProtoNetConfig(), backbone)
    folder = exported(model, format=format_)
    classifier = runner_in(folder).Classifier(folder)
    adapted = classifier.adapt(image_items()[SUPPORT], CLASSES)
    check_answers(adapted.classify(image_items()[QUERIES]), model)
    one = adapted.classify(image_items()[QUERIES[:1]]).probabilities
    np.testing.assert_allclose(one, answers_of(model)[:1], rtol=0, atol=PARITY)
    parity = json.loads((folder / "export.json").read_text())["parity"]
    assert set(parity) == {"features", "probabilities"} and max(parity.values()) <= PARITY


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_an_adapter_is_part_of_the_encoder(adapter: Any, tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", ProtoNetConfig(), SMALL, adapter)
    folder = exported(model, format="onnx")
    found = runner_in(folder).Classifier(folder).adapt(image_items()[SUPPORT], CLASSES).classify(image_items()[QUERIES])
    check_answers(found, model)


@every_algorithm
def test_a_learner_is_adapted_by_the_runner_or_it_says_what_to_do_instead(config: Any, tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", config, SMALL)
    learner = served(load_model(model).learner)
    if not isinstance(learner, FeatureWise):
        with pytest.raises(ModelError, match=f"{config.name} has a network of its own .* next: --support FOLDER"):
            exported(model, format="torch")
        assert not (tmp_path / "exports").exists()
        return
    folder = exported(model, format="torch")
    classifier = runner_in(folder).Classifier(folder)
    if recipe_of(learner) is not None:
        found = classifier.adapt(image_items()[SUPPORT], CLASSES).classify(image_items()[QUERIES])
        check_answers(found, model)
        return
    with pytest.raises(ValueError, match=f"{config.name} is not among .* kshot export with --support FOLDER"):
        classifier.adapt(image_items()[SUPPORT], CLASSES)
    with torch.no_grad():
        expected = learner.backbone(GREY.tensor(torch.from_numpy(image_items()[QUERIES])), None).numpy()
    np.testing.assert_allclose(classifier.features(image_items()[QUERIES]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format_", FORMATS)
@every_algorithm
def test_fixed_classes_are_one_program_of_items_to_probabilities(
    config: Any, format_: Literal["onnx", "torch"], tmp_path: Path
) -> None:
    model = saved_at(tmp_path / "model", config, SMALL)
    folder = exported(model, format=format_, support=support_folder(tmp_path))
    classifier = runner_in(folder).FixedClassifier(folder)
    check_answers(classifier.classify(image_items()[QUERIES]), model)
    assert json.loads((folder / "labels.json").read_text()) == sorted(set(CLASSES))
    np.testing.assert_allclose(
        classifier.classify(image_items()[QUERIES[:1]]).probabilities, answers_of(model)[:1], rtol=0, atol=PARITY
    )


@pytest.mark.parametrize("config", [MAMLConfig(), RelationConfig()], ids=lambda config: config.name)
def test_so_are_those_of_a_network_of_convolutions(config: Any, tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", config, Conv4Config(width=8))
    folder = exported(model, format="onnx", support=support_folder(tmp_path))
    check_answers(runner_in(folder).FixedClassifier(folder).classify(image_items()[QUERIES]), model)


def test_the_learners_that_the_runner_adapts_are_these() -> None:
    """docs/guide/export.md names them."""
    with_recipe = set()
    for config in CONFIGS:
        model = ModelConfig(algorithm=config, backbone=SMALL, item=GREY, train_shape=SHAPE, n_train_classes=8)
        if recipe_of(served(build_learner(model))) is not None:
            with_recipe.add(config.name)
    named = {"feat", "lda", "matching", "protonet", "r2d2", "ridge", "siamese", "simpleshot", "tip_adapter"}
    assert with_recipe == named
