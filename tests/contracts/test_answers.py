"""What every algorithm promises of its answers, whoever asks: the order of the support set, a saved model, serving.

A new name in `AlgorithmConfig` is tested here without a further line.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot.algorithms.answering import NON_TRANSDUCTIVE, normalization_modes, served
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import Support
from kshot.evaluation.scoring import score_episodes
from kshot.model import ModelConfig, SavedModel, build_learner, load_model, save_model
from kshot.serving.classifier import FewShotClassifier
from tests.contracts.test_algorithms import every_algorithm, modes, on_images
from tests.toy_episodes import SHAPE, image_items, image_pools

GREY = ImageKind(image_size=16, channels=1)
_FLOAT32 = {"atol": 2e-3, "rtol": 2e-3}  # another order of sums, after up to 50 steps that divide by small numbers


def saved(config: Any) -> SavedModel:
    model = ModelConfig(
        algorithm=config, backbone=Conv4Config(width=8), item=GREY, train_shape=SHAPE, n_train_classes=8
    )
    learner = build_learner(model, init_seed=1)
    learner.backbone.load_state_dict(on_images(config).backbone.state_dict())
    return SavedModel(learner=learner.eval(), config=model, temperatures={NON_TRANSDUCTIVE: 1.5})


@pytest.mark.parametrize(("config", "mode"), modes())
def test_the_order_of_the_support_set_does_not_matter(config: Any, mode: str) -> None:
    learner = normalization_modes(on_images(config))[mode]
    episodes = image_pools()[0].load(range(2))
    x, y = episodes.support_x, episodes.support_y
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = (
            learner.classify(learner.adapt(Support(x=x[:, rows], y=y[:, rows], n_way=SHAPE.n_way)), episodes.query_x)
            for rows in (torch.arange(len(order)), order)
        )
    torch.testing.assert_close(one, other, **_FLOAT32)


@pytest.mark.parametrize(("config", "mode"), modes())
def test_episodes_are_answered_alike_together_and_one_by_one(config: Any, mode: str) -> None:
    learner = normalization_modes(on_images(config))[mode]
    episodes = image_pools()[0].load(range(3))
    with torch.no_grad():
        together = learner.classify(learner.adapt(episodes.support), episodes.query_x)
        alone = [learner.classify(learner.adapt(one.support), one.query_x) for one in episodes.one_by_one()]
    torch.testing.assert_close(together, torch.cat(alone), **_FLOAT32)


@every_algorithm
def test_a_model_that_was_saved_gives_the_same_logits_to_the_bit(config: Any, tmp_path: Path) -> None:
    model = saved(config)
    save_model(tmp_path, model)
    episodes = image_pools()[0].load(range(2))
    with torch.no_grad():
        before, after = (
            learner.classify(learner.adapt(episodes.support), episodes.query_x)
            for learner in (model.learner, load_model(tmp_path).learner)
        )
    assert torch.equal(before, after)


@every_algorithm
def test_serving_answers_as_evaluation_does(config: Any) -> None:
    model = saved(config)
    _, pool, gather = image_pools()
    scores = score_episodes(served(model.learner), pool.indices[:3], gather, temperature=1.5)
    classifier = FewShotClassifier(model)
    for e, (support, query) in enumerate(zip(pool.indices.support[:3], pool.indices.query[:3], strict=True)):
        labels = np.arange(len(support)).repeat(support.shape[1])
        prediction = classifier.predict(image_items()[support.ravel()], labels, image_items()[query.ravel()])
        assert prediction.probabilities.argmax(1).tolist() == scores.predicted[e].ravel().tolist()
        np.testing.assert_allclose(prediction.probabilities.max(1), scores.tempered[e].ravel(), atol=1e-4)
