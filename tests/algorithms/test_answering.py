"""Learners that are asked with copies of the items."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from kshot.algorithms import FinetuneConfig, Learner, MAMLConfig, ProtoNetConfig, RidgeConfig
from kshot.algorithms.answering import NON_TRANSDUCTIVE, FeaturesOfCopies, normalization_modes, served
from kshot.backbones import Conv4Config, MLPConfig
from kshot.data.items import ImageKind, VectorKind
from kshot.data.views import viewed
from kshot.episodes.augmentation import Crop, Flip, Noise
from kshot.episodes.copies import AtTestTime, Copies
from kshot.episodes.episode import EpisodeShape, Support
from kshot.episodes.loader import load_episodes
from kshot.errors import ConfigError
from kshot.evaluation.scoring import episode_logits
from kshot.model import ModelConfig, SavedModel, build_learner, load_model, save_model
from kshot.runtime.lines import silent_lines
from kshot.serving.classifier import FewShotClassifier
from tests.toy_episodes import image_pools

ITEM = ImageKind(image_size=16, channels=1)
MIRRORED = Copies(views=("mirrored",))
DRAWN = Copies(views=("90",), draws=2, augment=(Crop(), Noise()))


def config(algorithm: Any, how: AtTestTime, **more: Any) -> ModelConfig:
    return ModelConfig(
        algorithm=algorithm,
        **{
            "backbone": Conv4Config(width=4),
            "item": ITEM,
            "train_shape": EpisodeShape(n_way=3, k_shot=1, n_query=2),
            "test_time": how,
            **more,
        },
    )


def learner_with(algorithm: Any, how: AtTestTime) -> Learner[Any]:
    return build_learner(config(algorithm, how)).eval()


def support_of(x: torch.Tensor) -> Support:
    return Support(x=x, y=torch.tensor([[0, 1, 2]]), n_way=3)


@pytest.fixture
def items() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, 1, 16, 16, generator=draws), torch.rand(1, 5, 1, 16, 16, generator=draws)


def test_the_support_set_grows_by_its_copies(items: tuple[torch.Tensor, torch.Tensor]) -> None:
    support, _ = items
    learner = learner_with(ProtoNetConfig(), AtTestTime(support=MIRRORED))
    found = served(learner).adapt(support_of(support))
    one, other = learner.adapt(support_of(support)), learner.adapt(support_of(support.flip(-1)))
    torch.testing.assert_close(found, (one + other) / 2)


def test_logits_are_averaged_over_the_copies_of_a_query(items: tuple[torch.Tensor, torch.Tensor]) -> None:
    support, query = items
    learner = learner_with(RidgeConfig(), AtTestTime(query=Copies(views=("mirrored", "180"))))
    adapted = learner.adapt(support_of(support))
    seen = [query, query.flip(-1), viewed(query, "180")]
    expected = sum(learner.classify(adapted, x) for x in seen) / 3
    torch.testing.assert_close(served(learner).classify(adapted, query), expected)


@pytest.mark.parametrize("algorithm", [ProtoNetConfig(), MAMLConfig(), FinetuneConfig(steps=2)], ids=lambda a: a.name)
def test_a_query_is_answered_alike_alone_and_on_another_day(
    algorithm: Any, items: tuple[torch.Tensor, torch.Tensor]
) -> None:
    support, query = items
    learner = served(learner_with(algorithm, AtTestTime(support=DRAWN, query=DRAWN)))
    adapted = learner.adapt(support_of(support))
    together = learner.classify(adapted, query)
    assert torch.equal(together, learner.classify(learner.adapt(support_of(support)), query))
    torch.testing.assert_close(learner.classify(adapted, query[:, 3:4])[0, 0], together[0, 3])


def test_draws_differ_and_are_the_same_for_every_item() -> None:
    first, second = Copies(draws=2, augment=(Crop(),)).each[1:]
    item = torch.rand(1, 16, 16)
    both = first.of(item.expand(2, 1, 16, 16))
    assert torch.equal(both[0], both[1])
    assert not torch.equal(both[0], second.of(item[None])[0])


def test_without_copies_a_learner_stays_itself() -> None:
    learner = learner_with(ProtoNetConfig(), AtTestTime())
    assert served(learner) is learner


@pytest.mark.parametrize("algorithm", [ProtoNetConfig(), MAMLConfig()], ids=lambda a: a.name)
def test_what_is_scored_is_what_is_served(algorithm: Any) -> None:
    """Scored on features that are made once, where the learner allows it, and served on items."""
    _, pool, gather = image_pools()
    indices = pool.episodes(range(4))
    saved = SavedModel(
        learner=learner_with(algorithm, AtTestTime(support=MIRRORED, query=DRAWN)),
        config=config(algorithm, AtTestTime(support=MIRRORED, query=DRAWN)),
        temperatures={NON_TRANSDUCTIVE: 3.0},
    )
    scored = torch.cat(list(episode_logits(served(saved.learner), indices, gather, silent_lines()))) / 3
    classifier = FewShotClassifier(saved)
    episodes = load_episodes(indices, gather)
    for number, one in enumerate(episodes.one_by_one()):
        stored = [(255 * x[0]).round().byte().movedim(1, -1).numpy() for x in (one.support_x, one.query_x)]
        found = classifier.predict(stored[0], one.support_y[0].numpy(), stored[1])
        np.testing.assert_allclose(found.probabilities, scored[number].softmax(1).detach(), atol=1e-6)


def test_copies_that_both_sides_take_are_embedded_once() -> None:
    learner = served(learner_with(ProtoNetConfig(), AtTestTime(support=MIRRORED, query=MIRRORED)))
    assert isinstance(learner.backbone, FeaturesOfCopies)
    assert len(learner.backbone.copies) == 2


def test_a_model_keeps_its_copies_and_is_stored_as_before_without_any(tmp_path: Path) -> None:
    for how in (AtTestTime(), AtTestTime(query=DRAWN)):
        made = config(ProtoNetConfig(), how)
        save_model(tmp_path, SavedModel(learner=build_learner(made), config=made))
        assert ("test_time" in (tmp_path / "model.json").read_text()) == (how != AtTestTime())
        assert load_model(tmp_path).learner.test_time == how
        names = load_model(tmp_path).learner.state_dict().keys()
        assert names == build_learner(config(ProtoNetConfig(), AtTestTime())).state_dict().keys()


def test_every_mode_is_asked_with_copies() -> None:
    modes = normalization_modes(learner_with(MAMLConfig(), AtTestTime(query=MIRRORED)))
    assert len(modes) == 2
    assert all(isinstance(learner.backbone, FeaturesOfCopies) for learner in modes.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draws": 2}, "draws is 2, and augment names no change; next: set augment"),
        ({"augment": [{"name": "flip"}]}, "augment is given, and draws is 0; next: set draws: 4"),
    ],
)
def test_half_of_a_setting_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TypeAdapter(Copies).validate_json(json.dumps(given))


def test_items_that_cannot_be_turned_are_refused() -> None:
    vectors = config(ProtoNetConfig(), AtTestTime(query=MIRRORED), item=VectorKind(size=4), backbone=MLPConfig())
    with pytest.raises(ConfigError, match=r"meta_train\.test_time is given, .* needed images; next: take"):
        build_learner(vectors)


def test_copies_are_named() -> None:
    how = AtTestTime(support=MIRRORED, query=Copies(views=("90",), draws=4, augment=(Crop(), Flip())))
    assert str(how) == "support with mirrored; queries with 90, 4 draws of crop, flip"
