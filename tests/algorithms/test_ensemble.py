"""Learners that answer as one."""

from typing import Any

import pytest
import torch

from kshot.algorithms import MAMLConfig, ProtoNetConfig
from kshot.algorithms.answering import NON_TRANSDUCTIVE, TRANSDUCTIVE, normalization_mode, normalization_modes
from kshot.algorithms.ensemble import ensemble_of, members_of
from kshot.algorithms.learner import FeatureWise, Learner
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape, Support
from kshot.model import ModelConfig, SavedModel, build_learner, load_model, save_model
from tests.toy_episodes import image_pools

SHAPE = EpisodeShape(n_way=3, k_shot=1, n_query=2)


def config(algorithm: Any, members: int = 1) -> ModelConfig:
    return ModelConfig(
        algorithm=algorithm,
        backbone=Conv4Config(width=4),
        item=ImageKind(image_size=16, channels=1),
        train_shape=SHAPE,
        members=members,
    )


def members(algorithm: Any, n_members: int = 3) -> list[Learner[Any]]:
    return [build_learner(config(algorithm), init_seed=seed).eval() for seed in range(n_members)]


def answered(learner: Learner[Any]) -> torch.Tensor:
    episode = image_pools(SHAPE)[0].load(range(1))
    with torch.no_grad():
        return learner.classify(learner.adapt(episode.support), episode.query_x).softmax(2)


@pytest.mark.parametrize("algorithm", [ProtoNetConfig(), MAMLConfig()], ids=lambda one: one.name)
def test_the_probabilities_are_the_means_of_those_of_the_members(algorithm: Any) -> None:
    each = members(algorithm)
    for mode, together in normalization_modes(ensemble_of(each)).items():
        alone = [answered(normalization_modes(member)[mode]) for member in each]
        torch.testing.assert_close(answered(together), torch.stack(alone).mean(0))


def test_on_features_that_were_made_once_it_answers_the_same() -> None:
    together = ensemble_of(members(ProtoNetConfig()))
    assert isinstance(together, FeatureWise)
    episode = image_pools(SHAPE)[0].load(range(1))
    with torch.no_grad():
        support, query = (together.backbone(x[0], None)[None] for x in (episode.support_x, episode.query_x))
        assert support.shape == (1, 3, 3 * 4)
        learner = together.on_features()
        known = learner.adapt(Support(x=support, y=episode.support_y, n_way=3))
        found = learner.classify(known, query).softmax(2)
    torch.testing.assert_close(found, answered(together))


def test_its_modes_are_those_of_its_members() -> None:
    together = ensemble_of(members(MAMLConfig()))
    assert normalization_mode(together) == TRANSDUCTIVE
    modes = normalization_modes(together)
    assert list(modes) == [TRANSDUCTIVE, NON_TRANSDUCTIVE]
    assert normalization_mode(modes[NON_TRANSDUCTIVE]) == NON_TRANSDUCTIVE
    assert together.max_way == 3
    assert not isinstance(together, FeatureWise)


@pytest.mark.parametrize("algorithm", [ProtoNetConfig(), MAMLConfig()], ids=lambda one: one.name)
def test_what_is_saved_answers_the_same_to_the_bit(algorithm: Any, tmp_path: Any) -> None:
    together = ensemble_of(members(algorithm, 2))
    save_model(tmp_path / "model", SavedModel(learner=together, config=config(algorithm, 2)))
    loaded = load_model(tmp_path / "model")
    assert len(members_of(loaded.learner)) == 2
    assert torch.equal(answered(loaded.learner), answered(together))


def test_a_learner_alone_is_its_own_only_member() -> None:
    (alone,) = members(ProtoNetConfig(), 1)
    assert members_of(alone) == [alone]
