"""MAML++'s meta-gradient against a loop written out by hand, and its schedules against the authors' formula."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.mamlpp import MAMLPlusPlus, MAMLPlusPlusConfig, loss_weights
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.plain_conv4 import assert_close_to_the_largest, episodes, on_conv4, plain_forward, weights_of

pytestmark = pytest.mark.usefixtures("kernels")

STEPS = 3
CONFIG = MAMLPlusPlusConfig(inner_steps=STEPS, multi_step_part=0.5, first_order_part=0.8)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner_of(config: MAMLPlusPlusConfig = CONFIG) -> MAMLPlusPlus:
    """With rates and normalisation that differ by step, as after a training."""
    learner: MAMLPlusPlus = on_conv4(MAMLPlusPlus, config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        learner.rates.mul_(torch.rand(learner.rates.shape, generator=draw) + 0.5)
        if learner.norm_offsets is not None:
            learner.norm_offsets.copy_(0.1 * torch.randn(learner.norm_offsets.shape, generator=draw))
    return learner


def plain_meta_gradient(
    learner: MAMLPlusPlus, batch: EpisodeBatch, importance: list[float], order: int
) -> list[Tensor]:
    start, offsets = weights_of(learner), learner.norm_offsets
    assert offsets is not None
    sizes = [w.numel() for w in start[4:12]]
    total = torch.zeros(())
    for i in range(len(batch)):
        fast = start[:4] + start[12:]
        for step in range(STEPS):
            norms = start[4:12]
            if step:
                norms = [w + o for w, o in zip(norms, torch.split(offsets[step - 1], sizes), strict=True)]
            network = fast[:4] + norms + fast[4:]
            loss = F.cross_entropy(plain_forward(network, batch.support_x[i]), batch.support_y[i])
            gradients = torch.autograd.grad(loss, fast, create_graph=order == 2)
            fast = [w - learner.rates[step, n] * g for n, (w, g) in enumerate(zip(fast, gradients, strict=True))]
            network = fast[:4] + norms + fast[4:]
            loss = F.cross_entropy(plain_forward(network, batch.query_x[i]), batch.query_y[i])
            total = total + importance[step] * loss
    return list(torch.autograd.grad(total, [*start, learner.rates, offsets]))


@pytest.mark.parametrize(
    ("done", "importance", "order"),
    [(0.0, [1 / 3, 1 / 3, 1 / 3], 1), (0.25, [1 / 6, 1 / 6, 2 / 3], 1), (0.6, [0, 0, 1], 1), (0.9, [0, 0, 1], 2)],
    ids=["at first", "annealed", "last step alone", "second order"],
)
def test_the_meta_gradient_equals_a_plain_loops(done: float, importance: list[float], order: int) -> None:
    learner, batch = learner_of(), episodes(5)
    own = [*weights_of(learner), learner.rates, learner.norm_offsets]
    found = torch.autograd.grad(learner.meta_loss(batch, done).sum(), own)
    for ours, plain in zip(found, plain_meta_gradient(learner, batch, importance, order), strict=True):
        assert_close_to_the_largest(ours, plain)


def test_several_steps_and_second_derivatives_come_together() -> None:
    learner, batch = learner_of(MAMLPlusPlusConfig(inner_steps=STEPS, multi_step_part=1.0)), episodes(5)
    own = [*weights_of(learner), learner.rates, learner.norm_offsets]
    found = torch.autograd.grad(learner.meta_loss(batch, 0.5).sum(), own)
    plain = plain_meta_gradient(learner, batch, [1 / 6, 1 / 6, 2 / 3], 2)
    for ours, theirs in zip(found, plain, strict=True):
        assert_close_to_the_largest(ours, theirs)


@pytest.mark.parametrize("epoch", [0, 1, 5, 9])
def test_the_weights_of_the_losses_are_those_of_the_authors_epochs(epoch: int) -> None:
    n_steps, n_epochs = 5, 10
    decay = 1 / n_steps / n_epochs
    others = max(1 / n_steps - epoch * decay, 0.03 / n_steps)
    last = min(1 / n_steps + epoch * (n_steps - 1) * decay, 1 - (n_steps - 1) * 0.03 / n_steps)
    assert loss_weights(n_steps, epoch / 100, 0.1) == pytest.approx([others] * 4 + [last])


def test_with_one_step_and_without_a_part_of_several_it_is_maml_with_learned_rates() -> None:
    learner = learner_of(MAMLPlusPlusConfig(inner_steps=1, multi_step_part=0.0))
    assert learner.norm_offsets is None
    assert learner.rates.shape == (1, 6)
    assert loss_weights(1, 0.0, 0.0) == [1.0]


def test_answers_after_fewer_and_more_steps_than_in_training() -> None:
    learner, batch = learner_of(), episodes(1)
    with torch.no_grad():
        answers = [
            stepped.classify(stepped.adapt(batch.support), batch.query_x)
            for stepped in (learner.with_inner_steps(n) for n in (0, 1, STEPS, STEPS + 2))
        ]
    assert all(bool(one.isfinite().all()) for one in answers)
    assert not any(torch.allclose(one, other) for one, other in pairwise(answers))
