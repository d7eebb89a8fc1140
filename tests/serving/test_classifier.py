from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kshot.algorithms import (
    AlgorithmConfig,
    BOILConfig,
    MAMLConfig,
    MAMLPlusPlusConfig,
    MetaSGDConfig,
    ProtoNetConfig,
    R2D2Config,
    ReptileConfig,
)
from kshot.algorithms.answering import served
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape, Support
from kshot.errors import EpisodeError, ModelError
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from kshot.serving.classifier import FewShotClassifier

GREY = ImageKind(image_size=16, channels=1)


def saved_model(algorithm: AlgorithmConfig, item: ImageKind = GREY) -> SavedModel:
    config = ModelConfig(
        algorithm=algorithm,
        backbone=Conv4Config(width=4),
        item=item,
        train_shape=EpisodeShape(n_way=3, k_shot=1, n_query=1),
    )
    return SavedModel(learner=build_learner(config).eval(), config=config)


def images(count: int, shape: tuple[int, int, int] = GREY.shape, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


ALGORITHMS = [
    ProtoNetConfig(),
    MAMLConfig(inner_lr=0.05),
    BOILConfig(inner_lr=0.05),
    ReptileConfig(eval_inner_steps=3),
    MetaSGDConfig(),
    MAMLPlusPlusConfig(inner_steps=2),
    R2D2Config(),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda config: config.name)
def test_prediction_is_that_of_the_learner(algorithm: AlgorithmConfig) -> None:
    model = saved_model(algorithm)
    support, labels, queries = images(5), np.array([40, 10, 30, 10, 10]), images(4, seed=1)

    prediction = FewShotClassifier(model).predict(support, labels, queries)

    learner = served(model.learner)
    x, query = (torch.tensor(part).movedim(-1, 1)[None] / 255 for part in (support, queries))
    adapted = learner.adapt(Support(x=x, y=torch.tensor([[2, 0, 1, 0, 0]]), n_way=3))
    expected = learner.classify(adapted, query)[0].softmax(1)
    assert prediction.labels.tolist() == [10, 30, 40]
    np.testing.assert_allclose(prediction.probabilities, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda config: config.name)
def test_a_query_is_classified_alike_alone_and_among_others(algorithm: AlgorithmConfig) -> None:
    classifier = FewShotClassifier(saved_model(algorithm))
    adapted = classifier.adapt(images(4), ["b", "a", "c", "a"])
    queries = images(300, seed=1)  # more than one forward pass
    together = adapted.classify(queries).probabilities
    for n in (0, 299):
        np.testing.assert_allclose(adapted.classify(queries[n : n + 1]).probabilities[0], together[n], atol=1e-5)


def test_order_of_the_support_set_does_not_matter() -> None:
    classifier = FewShotClassifier(saved_model(ProtoNetConfig()))
    support, labels, order = images(4), np.array(["b", "a", "c", "a"]), [3, 0, 2, 1]
    one = classifier.predict(support, labels, images(3, seed=1))
    other = classifier.predict(support[order], labels[order], images(3, seed=1))
    assert one.labels.tolist() == other.labels.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def test_probabilities_of_a_query_sum_to_one() -> None:
    prediction = FewShotClassifier(saved_model(ProtoNetConfig())).predict(images(2), [0, 1], images(3))
    assert prediction.probabilities.dtype == np.float32
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 25, 1), (16, 16, 3), (8, 64, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_and_colour_become_items(shape: tuple[int, int, int], channels: int) -> None:
    item = ImageKind(image_size=16, channels=channels)
    assert FewShotClassifier(saved_model(ProtoNetConfig(), item)).items(images(2, shape)).shape == (2, *item.shape)


def test_images_are_inverted_where_the_model_was_trained_on_inverted_ones() -> None:
    item = ImageKind(image_size=16, channels=1, invert=True)
    picture = images(1)
    assert (FewShotClassifier(saved_model(ProtoNetConfig(), item)).items(picture) == 255 - picture).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_become_squares_as_those_that_the_model_was_trained_on(fit: Literal["crop", "pad", "stretch"]) -> None:
    item = ImageKind(image_size=16, channels=1, fit=fit)
    wide = images(1, (16, 48, 1))
    served = FewShotClassifier(saved_model(ProtoNetConfig(), item)).items(wide)
    assert np.array_equal(served[0], item.read(wide[0]).item)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (images(2).astype(np.float32), r"pixels are float32, .* need uint8"),
        (images(2)[0], r"of an array of shape \(16, 16, 1\), the pixels .* need \(height, width"),
        (images(2)[:0], r"shape \(0, 16, 16, 1\); need at least one image"),
        (images(2, (16, 16, 2)), r"shape \(2, 16, 16, 2\)"),
        (images(2, (16, 0, 1)), r"shape \(2, 16, 0, 1\)"),
    ],
)
def test_input_that_is_no_image_is_refused(bad: NDArray[np.generic], message: str) -> None:
    classifier = FewShotClassifier(saved_model(ProtoNetConfig()))
    with pytest.raises(ModelError, match=message):
        classifier.predict(bad, [0, 1], images(1))
    with pytest.raises(ModelError, match=message):
        classifier.predict(images(2), [0, 1], bad)


def test_items_of_another_size_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"support items are uint8 \(2, 8, 8, 1\); need uint8 \(at least 1, 16, 16, 1\)"
    ):
        FewShotClassifier(saved_model(ProtoNetConfig())).adapt(images(2, (8, 8, 1)), [0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([5, 5, 5], r"of 1 class; need at least 2"),
        ([0, 1], r"shape \(2,\) for 3 support items"),
        ([[0], [1], [2]], r"shape \(3, 1\) for 3 support items"),
    ],
)
def test_support_set_that_teaches_no_difference_is_refused(labels: list[object], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        FewShotClassifier(saved_model(ProtoNetConfig())).predict(images(3), labels, images(1))


def test_more_classes_than_a_maml_head_has_are_refused() -> None:
    with pytest.raises(EpisodeError, match=r"found 4 classes; this MAML head was trained for 3"):
        FewShotClassifier(saved_model(MAMLConfig())).predict(images(4), [0, 1, 2, 3], images(1))


def test_weights_other_than_the_registered_ones_are_refused(tmp_path: Path) -> None:
    model = saved_model(ProtoNetConfig())
    save_model(tmp_path / "model", model)
    with pytest.raises(ModelError, match=r"has SHA-256 \w{12}; the registry names 0{12}: these are not the weights"):
        FewShotClassifier.load(tmp_path / "model", weights_sha256="0" * 64)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights at .*weights\.safetensors"):
        FewShotClassifier.load(tmp_path, weights_sha256="0" * 64)
    with pytest.raises(ModelError, match=r"no model in"):
        FewShotClassifier.load(tmp_path)
