"""Encoders of 8 bits: what is in the file, and what is said of their cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from numpy.typing import NDArray

from kshot.algorithms import ANILConfig, ProtoNetConfig, RidgeConfig
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones import Conv4Config
from kshot.backbones.contract import Flatten
from kshot.config import load_params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.errors import DataError
from kshot.evaluation.scoring import score_episodes
from kshot.export.held_out import HeldOut, held_out
from kshot.export.int8 import Cost, cost_of_int8
from kshot.export.runner import Classifier, FixedClassifier
from kshot.model import load_model
from kshot.stages import task_pool
from kshot.workspace import Workspace
from tests.contracts.test_exports import (
    CLASSES,
    GREY,
    QUERIES,
    SMALL,
    SUPPORT,
    answers_of,
    exported,
    saved_at,
    support_folder,
)
from tests.tiny_project import tiny_params, write_project
from tests.toy_episodes import image_items


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with frozen episodes."""
    root = write_project(tmp_path, tiny_params())
    task_pool.run(load_params(root / "params.yaml"), Workspace(root))
    return root


def quantised_products(path: Path) -> set[str]:
    """The products whose inputs are of 8 bits, and whose weights are kept so."""
    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    stored = {one.name: one.data_type for one in graph.initializer}
    found = set()
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            sources = [made_by.get(name) for name in node.input[:2]]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                assert sources[1] is not None and stored[sources[1].input[0]] == onnx.TensorProto.INT8
                found.add(node.op_type)
    return found


def test_an_encoder_in_int8_answers_nearly_as_in_float32_and_says_what_that_costs(project: Path) -> None:
    model = saved_at(project / "model", ProtoNetConfig(), Conv4Config(width=8))
    folder = exported(model, format="onnx", int8=True)
    assert quantised_products(folder / "encoder.onnx") == {"Conv"}
    classifier = Classifier(folder)
    probabilities = classifier.adapt(image_items()[SUPPORT], CLASSES).classify(image_items()[QUERIES]).probabilities
    assert 1e-4 < np.abs(probabilities - answers_of(model)).max() < 0.3
    found = classifier.description["int8"]
    assert (found["calibrated_on"], found["calibration_items"]) == ("meta_train", 30)
    dataset, params = PackedDataset.open(project / "data" / "tiny"), load_params(project / "params.yaml")
    pools = read_frozen(Workspace(project).output("task_pool"), dataset, params.task_pool).test
    gather, learner = item_gather(dataset, torch.device("cpu")), load_model(model).learner
    for name, pool in pools.items():
        expected = score_episodes(learner, pool.indices, gather).accuracy.mean()
        assert found["accuracy"]["float32"][name]["mean"] == pytest.approx(expected)
        assert found["accuracy"]["int8"][name]["mean"] == pytest.approx(by_hand(classifier, dataset, pool))
    assert set(found["accuracy"]["int8"]) == set(pools)


def by_hand(classifier: Classifier, dataset: PackedDataset, pool: Any) -> float:
    """Accuracy by the runner, episode by episode."""
    right = []
    for support, query in zip(pool.indices.support, pool.indices.query, strict=True):
        numbers = np.arange(len(support))
        adapted = classifier.adapt(dataset.gather(support.ravel()), numbers.repeat(support.shape[1]))
        answers = adapted.classify(dataset.gather(query.ravel())).probabilities.argmax(1)
        right.append((answers == numbers.repeat(query.shape[1])).mean())
    return float(np.mean(right))


def test_fixed_classes_in_int8_are_one_file_and_learned_from_features_in_int8(project: Path) -> None:
    model = saved_at(project / "model", RidgeConfig(), Conv4Config(width=8))
    fixed = exported(model, int8=True, support=support_folder(project))
    assert {path.name for path in fixed.iterdir()} == {
        *("README.txt", "classifier.onnx", "export.json", "kshot_runner.py", "labels.json")
    }
    assert quantised_products(fixed / "classifier.onnx") == {"Conv"}
    onnx.checker.check_model(onnx.load(fixed / "classifier.onnx"), full_check=True)
    found = FixedClassifier(fixed).classify(image_items()[QUERIES]).probabilities
    encoder = Classifier(exported(model, int8=True))
    expected = encoder.adapt(image_items()[SUPPORT], CLASSES).classify(image_items()[QUERIES]).probabilities
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_without_a_project_the_ranges_are_those_of_the_support_set_and_no_cost_is_said(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL)
    folder = exported(model, int8=True, support=support_folder(tmp_path))
    assert quantised_products(folder / "classifier.onnx") == {"Gemm"}
    found = json.loads((folder / "export.json").read_text())["int8"]
    assert (found["calibrated_on"], found["calibration_items"], found["accuracy"]) == ("support", len(SUPPORT), None)
    assert found["why"].startswith("its cost is not measured: ")
    with pytest.raises(DataError, match="--int8 needs items of training for its ranges; next: --support FOLDER"):
        exported(model, int8=True)


def test_a_dataset_of_other_items_is_not_measured_on(project: Path) -> None:
    other = type(GREY)(image_size=17, channels=1)
    assert held_out(project, other) == f"data/tiny holds {GREY}, and the model takes {other}"


def test_pools_that_are_not_there_or_have_too_many_classes_are_not_scored(project: Path) -> None:
    held = held_out(project, GREY)
    assert isinstance(held, HeldOut) and isinstance(held.pools, dict)
    learner = load_model(saved_at(project / "anil", ANILConfig(), SMALL)).learner.on_features()
    learner.max_way = 2
    cost = cost_of_int8(learner, held, embed, embed)
    assert isinstance(cost, Cost) and set(cost.int8) == {"2w2s"}
    learner.max_way = 1
    assert "every frozen episode of meta_test has more than 1 classes" in str(cost_of_int8(learner, held, embed, embed))
    settings = tiny_params()
    settings["task_pool"]["meta_test"]["settings"] = [{"n_way": 4, "k_shot": 1}]
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    held = held_out(project, GREY)
    assert isinstance(held, HeldOut) and len(held.training) == 30
    assert "its cost is not measured: no task pool" in str(cost_of_int8(learner, held, embed, embed))


def embed(items: NDArray[Any]) -> NDArray[np.float32]:
    return items.reshape(len(items), -1)[:, :16].astype(np.float32)


def test_the_cost_is_int8_minus_float32_on_the_same_episodes(project: Path) -> None:
    """Of features that tell every class, and of such that tell none."""
    held = held_out(project, GREY)
    assert isinstance(held, HeldOut)
    class_of = {item.tobytes(): label for item, label in zip(all_items(held), held.dataset.labels, strict=True)}

    def perfect(items: NDArray[Any]) -> NDArray[np.float32]:
        return np.eye(len(held.dataset.classes), dtype=np.float32)[[class_of[item.tobytes()] for item in items]]

    def blind(items: NDArray[Any]) -> NDArray[np.float32]:
        return np.zeros((len(items), 3), dtype=np.float32)

    cost = cost_of_int8(ProtoNet(Flatten()), held, perfect, blind)
    assert isinstance(cost, Cost)
    assert {name: interval.mean for name, interval in cost.float32.items()} == {"3w1s": 1.0, "2w2s": 1.0}
    assert cost.int8["3w1s"].mean == pytest.approx(1 / 3)  # the first class is always the answer
    assert cost.int8["2w2s"].mean == pytest.approx(1 / 2)
    assert cost.difference.mean == pytest.approx((-2 / 3 - 1 / 2) / 2)
    assert str(cost).startswith("-58.33 ± 0.00 points of accuracy on the same episodes (3w1s 100.00 -> 33.33, ")


def all_items(held: HeldOut) -> NDArray[Any]:
    return held.dataset.gather(np.arange(len(held.dataset.labels)))
