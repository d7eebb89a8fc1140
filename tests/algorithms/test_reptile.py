"""Reptile against torch's own Adam on one task after the other."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.reptile import Reptile, ReptileConfig, minibatch
from kshot.episodes.episode import EpisodeBatch, Support
from tests.algorithms.plain_conv4 import assert_close_to_the_largest, episodes, on_conv4, plain_forward, weights_of

pytestmark = pytest.mark.usefixtures("kernels")

CONFIG = ReptileConfig(inner_lr=0.01, inner_steps=4, inner_batch=4, eval_inner_steps=3)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained_on(start: list[Tensor], parts: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[float]]:
    """The weights after a step of Adam on each part, and the loss of each before its step."""
    weights = [w.detach().clone().requires_grad_() for w in start]
    fit = torch.optim.Adam(weights, lr=CONFIG.inner_lr, betas=(0.0, 0.999))
    losses = []
    for x, y in parts:
        fit.zero_grad()
        loss = F.cross_entropy(plain_forward(weights, x), y)
        loss.backward()
        fit.step()
        losses.append(float(loss.detach()))
    return [w.detach() for w in weights], losses


def parts_of(batch: EpisodeBatch, i: int) -> list[tuple[Tensor, Tensor]]:
    one = list(batch.one_by_one())[i]
    support = [minibatch(one.support, one.keys, n, CONFIG.inner_batch) for n in range(CONFIG.inner_steps - 1)]
    return [*((part.x[0], part.y[0]) for part in support), (one.query_x[0], one.query_y[0])]


def test_the_gradient_that_is_given_is_start_minus_end_of_a_plain_training() -> None:
    learner: Reptile = on_conv4(Reptile, CONFIG)
    batch, start = episodes(5), weights_of(learner)
    losses = learner.meta_loss(batch)
    found = torch.autograd.grad(losses.sum(), start)
    expected = [torch.zeros_like(w) for w in start]
    for i in range(5):
        end, plain_losses = trained_on(start, parts_of(batch, i))
        assert float(losses[i].detach()) == pytest.approx(plain_losses[-1], rel=1e-9)
        expected = [total + w.detach() - e for total, w, e in zip(expected, start, end, strict=True)]
    for ours, plain in zip(found, expected, strict=True):
        assert_close_to_the_largest(ours, plain)


def test_adapting_takes_the_whole_support_set_in_every_step() -> None:
    learner: Reptile = on_conv4(Reptile, CONFIG).with_query_statistics(True)
    batch = episodes(5)
    found = learner.classify(learner.adapt(batch.support), batch.query_x)
    for i, one in enumerate(batch.one_by_one()):
        end, _ = trained_on(weights_of(learner), [(one.support_x[0], one.support_y[0])] * 3)
        torch.testing.assert_close(found[i], plain_forward(end, one.query_x[0]), rtol=1e-7, atol=1e-9)


def test_minibatches_go_through_the_support_set_in_an_order_that_the_key_draws() -> None:
    x = torch.arange(6.0)[None, :, None].expand(2, -1, -1)
    support = Support(x=x, y=torch.tensor([[0, 0, 1, 1, 2, 2]] * 2), n_way=3)
    keys = torch.tensor([5, 6])
    seen = torch.cat([minibatch(support, keys, number, 2).x[:, :, 0] for number in range(3)], dim=1)
    assert seen.sort(1).values.tolist() == [list(range(6))] * 2
    assert seen[0].tolist() != seen[1].tolist()
    again = minibatch(Support(x=x[1:], y=support.y[1:], n_way=3), keys[1:], 3, 2)
    assert again.x[0, :, 0].tolist() == minibatch(support, keys, 0, 2).x[1, :, 0].tolist()
    assert again.y[0].tolist() == [int(item) // 2 for item in again.x[0, :, 0]]


def test_a_minibatch_larger_than_the_support_set_is_all_of_it() -> None:
    support = Support(x=torch.randn(1, 3, 2), y=torch.tensor([[0, 1, 2]]), n_way=3)
    assert minibatch(support, torch.tensor([1]), 4, 10).y.sort(1).values.tolist() == [[0, 1, 2]]
