"""Meta-SGD's meta-gradient, that of the rates too, against a loop written out by hand."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.learner import Problem
from kshot.algorithms.meta_sgd import MetaSGD, MetaSGDConfig
from kshot.backbones.contract import freeze
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.plain_conv4 import assert_close_to_the_largest, episodes, on_conv4, plain_forward, weights_of
from tests.toy_episodes import SHAPE, LinearBackbone

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_meta_gradient(learner: MetaSGD, batch: EpisodeBatch) -> list[Tensor]:
    """Of all weights, and of the rate of each."""
    start = weights_of(learner)
    split = torch.split(learner.rates.detach(), [w.numel() for w in start])
    rates = [rate.reshape(weight.shape).requires_grad_() for rate, weight in zip(split, start, strict=True)]
    total = torch.zeros(())
    for i in range(len(batch)):
        fast = start
        for _ in range(learner.config.inner_steps):
            loss = F.cross_entropy(plain_forward(fast, batch.support_x[i]), batch.support_y[i])
            gradients = torch.autograd.grad(loss, fast, create_graph=not learner.config.first_order)
            fast = [w - rate * g for w, rate, g in zip(fast, rates, gradients, strict=True)]
        total = total + F.cross_entropy(plain_forward(fast, batch.query_x[i]), batch.query_y[i])
    return list(torch.autograd.grad(total, start + rates))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_the_meta_gradient_of_weights_and_rates_equals_a_plain_loops(inner_steps: int, first_order: bool) -> None:
    learner = on_conv4(MetaSGD, MetaSGDConfig(inner_steps=inner_steps, first_order=first_order))
    batch = episodes(5)
    found = torch.autograd.grad(learner.meta_loss(batch).sum(), [*weights_of(learner), learner.rates])
    plain = plain_meta_gradient(learner, batch)
    n_weights = len(found) - 1
    for ours, theirs in zip(found[:-1], plain[:n_weights], strict=True):
        assert_close_to_the_largest(ours, theirs)
    assert_close_to_the_largest(found[-1], torch.cat([rate.flatten() for rate in plain[n_weights:]]))


def test_rates_start_between_those_of_the_paper() -> None:
    rates = on_conv4(MetaSGD, MetaSGDConfig()).rates.detach()
    assert 0.005 <= float(rates.min()) < 0.006
    assert 0.099 < float(rates.max()) <= 0.1


def test_an_episode_of_fewer_classes_takes_the_rates_of_the_rows_it_uses() -> None:
    learner = MetaSGDConfig().build(LinearBackbone(), Problem(train_shape=SHAPE, n_train_classes=None))
    batch = EpisodeBatch(
        support_x=torch.randn(1, 2, 16),
        support_y=torch.tensor([[0, 1]]),
        query_x=torch.randn(1, 2, 16),
        query_y=torch.tensor([[0, 1]]),
        n_way=2,
        keys=torch.zeros(1, dtype=torch.int64),
    )
    (gradient,) = torch.autograd.grad(learner.meta_loss(batch).sum(), learner.rates)
    of_bias = gradient[-SHAPE.n_way :]
    assert of_bias[:2].abs().min() > 0
    assert of_bias[2] == 0


def test_frozen_weights_have_no_rates() -> None:
    learner = MetaSGDConfig().build(freeze(LinearBackbone(), "all"), Problem(train_shape=SHAPE, n_train_classes=None))
    assert len(learner.rates) == sum(weight.numel() for weight in learner.head.parameters())
