"""Fine-tuning against a loop that trains a copy of the backbone."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.finetune import Finetune, FinetuneConfig
from kshot.backbones import Conv4Config
from kshot.backbones.contract import calibrate
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeBatch
from kshot.errors import ConfigError
from tests.toy_episodes import SHAPE, LinearBackbone, image_pools, point_pools

LINEAR = FinetuneConfig(steps=5, learning_rates=(0.3,))


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points(n_episodes: int = 5) -> EpisodeBatch:
    batch = point_pools()[0].load(range(n_episodes))
    return EpisodeBatch(**{**vars(batch), "support_x": batch.support_x.double(), "query_x": batch.query_x.double()})


def tuned_by_hand(learner: Finetune, episode: EpisodeBatch, steps: int, rate: float, parts: tuple[str, ...]) -> Tensor:
    """Logits of the queries of one episode, from a copy of the backbone that torch's SGD trains."""
    backbone = deepcopy(learner.backbone)
    x, y = episode.support_x[0], episode.support_y[0]
    with torch.no_grad():
        features = F.normalize(backbone(x, None))
    head = torch.stack([features[y == n].mean(0) for n in range(SHAPE.n_way)]).requires_grad_()
    tuned = [weight for name, weight in backbone.named_parameters() if not parts or name.startswith(parts)]
    fit = torch.optim.SGD([head, *tuned], lr=rate)
    for _ in range(steps):
        fit.zero_grad()
        F.cross_entropy(10 * F.linear(F.normalize(backbone(x, None)), F.normalize(head)), y).backward()
        fit.step()
    return 10 * F.linear(F.normalize(backbone(episode.query_x[0], None)), F.normalize(head)).detach()


@pytest.mark.parametrize("parts", [(), ("linear.bias",)], ids=["whole", "part"])
def test_logits_are_those_of_a_copy_that_is_trained(parts: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    learner = Finetune(LinearBackbone(), FinetuneConfig(parts=parts, steps=5, learning_rates=(0.3,)))
    batch = points()
    with torch.no_grad():
        found = learner.classify(learner.adapt(batch.support), batch.query_x)
    for i, episode in enumerate(batch.one_by_one()):
        expected = tuned_by_hand(learner, episode, 5, 0.3, parts)
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-11)


def test_a_network_of_convolutions_is_tuned_under_its_population_statistics() -> None:
    torch.manual_seed(0)
    backbone = Conv4Config(width=4).build(ImageKind(image_size=16, channels=1))
    batch = image_pools()[0].load(range(2))
    batch = EpisodeBatch(**{**vars(batch), "support_x": batch.support_x.double(), "query_x": batch.query_x.double()})
    calibrate(backbone, batch.support_x)
    learner = Finetune(backbone, FinetuneConfig(steps=3, learning_rates=(0.05,))).eval()
    found = learner.classify(learner.adapt(batch.support), batch.query_x)
    for i, episode in enumerate(batch.one_by_one()):
        torch.testing.assert_close(found[i], tuned_by_hand(learner, episode, 3, 0.05, ()), rtol=1e-7, atol=1e-8)


def test_only_the_named_part_and_the_head_change_for_an_episode() -> None:
    learner = Finetune(LinearBackbone(), FinetuneConfig(parts=("linear.bias",), learning_rates=(0.3,)))
    adapted = learner.adapt(points(2).support).weights
    assert adapted.keys() == {"linear.bias", "head"}
    assert not torch.equal(adapted["linear.bias"][0], adapted["linear.bias"][1])
    assert all(not weight.requires_grad for weight in adapted.values())


def test_a_frozen_layer_is_not_tuned() -> None:
    learner = Finetune(LinearBackbone(), LINEAR)
    learner.backbone.linear.weight.requires_grad_(False)
    assert learner.adapt(points(1).support).weights.keys() == {"linear.bias", "head"}


def test_no_step_and_a_rate_of_0_are_the_nearest_class_mean_by_cosine() -> None:
    learner, batch = Finetune(LinearBackbone(), LINEAR), points(1)
    x, y, queries = (learner.backbone(batch.support_x[0], None), batch.support_y[0], batch.query_x[0])
    means = torch.stack([F.normalize(x)[y == n].mean(0) for n in range(SHAPE.n_way)])
    expected = 10 * F.linear(F.normalize(learner.backbone(queries, None)), F.normalize(means))
    without = learner.with_inner_steps(0)
    torch.testing.assert_close(without.classify(without.adapt(batch.support), batch.query_x)[0], expected)
    learner.choose(0.0)
    torch.testing.assert_close(learner.classify(learner.adapt(batch.support), batch.query_x)[0], expected)


def test_a_part_that_the_backbone_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="parts has 'conv'; need the beginning of a name among linear; next: name"):
        Finetune(LinearBackbone(), FinetuneConfig(parts=("conv",)))
