"""ANIL's meta-gradient against a loop written out with autograd's own gradients."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.anil import ANIL, ANILConfig
from kshot.episodes.episode import EpisodeBatch
from tests.toy_episodes import SHAPE, LinearBackbone, point_pools


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(config: ANILConfig) -> ANIL:
    torch.manual_seed(0)
    return ANIL(LinearBackbone(), config, n_features=8, n_way=SHAPE.n_way)


def episodes(n: int) -> EpisodeBatch:
    batch = point_pools()[0].load(range(n))
    return EpisodeBatch(
        support_x=batch.support_x.double(),
        support_y=batch.support_y,
        query_x=batch.query_x.double(),
        query_y=batch.query_y,
        n_way=batch.n_way,
        keys=batch.keys,
    )


def plain_meta_gradient(anil: ANIL, batch: EpisodeBatch) -> list[Tensor]:
    total = torch.zeros(())
    for i in range(len(batch)):
        support, query = anil.backbone(batch.support_x[i], None), anil.backbone(batch.query_x[i], None)
        head = [anil.head.weight, anil.head.bias]
        for _ in range(anil.config.inner_steps):
            loss = F.cross_entropy(F.linear(support, *head), batch.support_y[i])
            steps = torch.autograd.grad(loss, head, create_graph=True)
            if anil.config.first_order:
                steps = [step.detach() for step in steps]
            head = [w - anil.config.inner_lr * step for w, step in zip(head, steps, strict=True)]
        total = total + F.cross_entropy(F.linear(query, *head), batch.query_y[i])
    return list(torch.autograd.grad(total, list(anil.parameters())))


@pytest.mark.parametrize("inner_steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_the_meta_gradient_equals_a_plain_loops(inner_steps: int, first_order: bool) -> None:
    anil = learner(ANILConfig(inner_steps=inner_steps, first_order=first_order))
    batch = episodes(3)
    found = torch.autograd.grad(anil.meta_loss(batch).sum(), list(anil.parameters()))
    for ours, plain in zip(found, plain_meta_gradient(anil, batch), strict=True):
        assert float((ours - plain).abs().max()) <= 1e-9 * float(plain.abs().max())


def test_adapting_moves_the_head_alone() -> None:
    anil, batch = learner(ANILConfig(inner_lr=0.5)), episodes(2)
    adapted = anil.adapt(batch.support)
    assert adapted.weight.shape == (2, SHAPE.n_way, 8)
    assert not torch.allclose(adapted.weight[0], adapted.weight[1])
