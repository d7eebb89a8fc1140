"""MAML's meta-gradient against a loop written out by hand, a finite difference, and a case known on paper."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.maml import MAML, MAMLConfig
from kshot.backbones import Conv4Config
from kshot.episode import EpisodeBatch
from tests.toy_episodes import SHAPE, image_pools


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(config: MAMLConfig, image_size: int = 16) -> MAML:
    torch.manual_seed(0)
    backbone = Conv4Config(width=5).build(channels=1, image_size=image_size)
    return MAML(backbone, config, n_features=backbone.n_features, n_way=SHAPE.n_way)


def episodes(n: int = 2) -> EpisodeBatch:
    batch = image_pools()[0].load(np.arange(n))
    return EpisodeBatch(
        support_x=batch.support_x.double(),
        support_y=batch.support_y,
        query_x=batch.query_x.double(),
        query_y=batch.query_y,
        n_way=batch.n_way,
    )


def plain_forward(parameters: list[Tensor], x: Tensor) -> Tensor:
    """Conv4 and a linear head from textbook calls; parameters as (convolution, weight, bias) * 4, head."""
    convolutions, norms, head = parameters[:4], parameters[4:12], parameters[12:]
    for i in range(4):
        x = F.conv2d(x, convolutions[i], padding=1)
        x = F.batch_norm(x, None, None, norms[2 * i], norms[2 * i + 1], training=True)
        x = F.max_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), *head)


def plain_meta_gradient(maml: MAML, batch: EpisodeBatch) -> list[Tensor]:
    config = maml.config
    parameters = list(maml.parameters())
    total = torch.zeros(())
    for i in range(len(batch)):
        fast = parameters
        for _ in range(config.inner_steps):
            loss = F.cross_entropy(plain_forward(fast, batch.support_x[i]), batch.support_y[i])
            gradients = torch.autograd.grad(loss, fast, create_graph=not config.first_order)
            fast = [w - config.inner_lr * g for w, g in zip(fast, gradients, strict=True)]
        total = total + F.cross_entropy(plain_forward(fast, batch.query_x[i]), batch.query_y[i])
    return list(torch.autograd.grad(total, parameters))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_the_meta_gradient_equals_a_plain_loops(inner_steps: int, first_order: bool) -> None:
    maml = learner(MAMLConfig(inner_steps=inner_steps, first_order=first_order, inner_lr=0.1))
    batch = episodes()
    found = torch.autograd.grad(maml.meta_loss(batch).sum(), list(maml.parameters()))
    for ours, plain in zip(found, plain_meta_gradient(maml, batch), strict=True):
        assert float((ours - plain).abs().max()) <= 1e-8 * max(1.0, float(plain.abs().max()))


def test_first_and_second_order_differ() -> None:
    batch = episodes()
    gradients = []
    for first_order in (False, True):
        maml = learner(MAMLConfig(inner_steps=2, first_order=first_order))
        gradients.append(torch.autograd.grad(maml.meta_loss(batch).sum(), maml.head.weight)[0])
    assert float((gradients[0] - gradients[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("query_statistics", [True, False])
def test_the_meta_gradient_equals_a_finite_difference(query_statistics: bool) -> None:
    maml = learner(MAMLConfig(inner_steps=2, inner_lr=0.05, query_statistics=query_statistics))
    batch = episodes(1)
    parameters = list(maml.parameters())
    gradients = torch.autograd.grad(maml.meta_loss(batch).sum(), parameters)
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(p.shape, generator=generator) for p in parameters]
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    step = 1e-6

    def loss_at(offset: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(offset * d)
        value = float(maml.meta_loss(batch).detach().sum())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(offset * d)
        return value

    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(expected, rel=1e-4)


class Identity(nn.Module):
    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items


def test_one_inner_step_of_the_head_is_the_step_known_on_paper() -> None:
    maml = MAML(Identity(), MAMLConfig(inner_lr=0.5, eval_inner_steps=1), n_features=1, n_way=2)
    with torch.no_grad():
        maml.head.weight.zero_()
        maml.head.bias.zero_()
    x, y = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[0, 1]])
    adapted = maml.adapt(EpisodeBatch(support_x=x, support_y=y, query_x=x, query_y=y, n_way=2).support)
    # both probabilities are 1/2, so dL/dw = mean((p - onehot) x) = (-1/2, 1/2) and dL/db = 0
    assert adapted.weights[0]["head.weight"].flatten().tolist() == pytest.approx([0.25, -0.25])
    assert adapted.weights[0]["head.bias"].tolist() == pytest.approx([0.0, 0.0])


def test_adapting_under_no_grad_keeps_no_graph_and_agrees_with_adapting_for_training() -> None:
    maml = learner(MAMLConfig(eval_inner_steps=2))
    support = episodes().support
    with torch.no_grad():
        light = maml.adapt(support)
    heavy = maml.adapt(support)
    for a, b in zip(light.weights, heavy.weights, strict=True):
        assert not any(w.requires_grad for w in a.values())
        assert all(w.requires_grad for w in b.values())
        assert all(torch.allclose(a[name], b[name]) for name in a)
