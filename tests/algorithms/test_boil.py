"""BOIL's meta-gradient against a loop written out by hand, and what it leaves alone."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.boil import BOIL, BOILConfig
from kshot.algorithms.learner import Problem
from kshot.backbones.contract import freeze
from kshot.episodes.episode import EpisodeBatch
from kshot.errors import ConfigError
from tests.algorithms.plain_conv4 import assert_close_to_the_largest, episodes, on_conv4, plain_forward, weights_of
from tests.toy_episodes import SHAPE, LinearBackbone

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_meta_gradient(learner: BOIL, batch: EpisodeBatch) -> list[Tensor]:
    start = weights_of(learner)
    total = torch.zeros(())
    for i in range(len(batch)):
        body, head = start[:-2], start[-2:]
        for _ in range(learner.config.inner_steps):
            loss = F.cross_entropy(plain_forward(body + head, batch.support_x[i]), batch.support_y[i])
            gradients = torch.autograd.grad(loss, body, create_graph=not learner.config.first_order)
            body = [w - learner.config.inner_lr * g for w, g in zip(body, gradients, strict=True)]
        total = total + F.cross_entropy(plain_forward(body + head, batch.query_x[i]), batch.query_y[i])
    return list(torch.autograd.grad(total, start))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_the_meta_gradient_equals_a_plain_loops(inner_steps: int, first_order: bool) -> None:
    learner = on_conv4(BOIL, BOILConfig(inner_lr=0.1, inner_steps=inner_steps, first_order=first_order))
    batch = episodes(5)
    found = torch.autograd.grad(learner.meta_loss(batch).sum(), weights_of(learner))
    for ours, plain in zip(found, plain_meta_gradient(learner, batch), strict=True):
        assert_close_to_the_largest(ours, plain)


def test_adapting_moves_the_body_and_leaves_the_head() -> None:
    learner = on_conv4(BOIL, BOILConfig())
    with torch.no_grad():
        weights = learner.adapt(episodes(2).support).weights
    for own, name in zip(learner.head.parameters(), ("head.weight", "head.bias"), strict=True):
        assert torch.equal(weights[name], own.expand(2, *own.shape))
    assert not torch.equal(weights["backbone.convolutions.0.weight"][0], weights["backbone.convolutions.0.weight"][1])


def test_a_frozen_backbone_leaves_nothing_to_adapt() -> None:
    problem = Problem(train_shape=SHAPE, n_train_classes=None)
    with pytest.raises(ConfigError, match="boil adapts the backbone, and all of it is frozen; .* next: set backbone"):
        BOILConfig().build(freeze(LinearBackbone(), "all"), problem)
