"""MAML's meta-gradient against a loop written out by hand, a finite difference, and a case known on paper."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.maml import MAML, MAMLConfig
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.plain_conv4 import assert_close_to_the_largest, episodes, on_conv4, plain_forward

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(config: MAMLConfig, image_size: int = 16) -> MAML:
    return on_conv4(MAML, config, image_size)


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


@pytest.mark.parametrize("inner_steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
@pytest.mark.parametrize("n_episodes", [1, 3], ids=["alone", "side by side"])
@pytest.mark.parametrize("image_size", [16, 28])
def test_the_meta_gradient_equals_a_plain_loops(
    inner_steps: int, first_order: bool, n_episodes: int, image_size: int
) -> None:
    maml = learner(MAMLConfig(inner_steps=inner_steps, first_order=first_order, inner_lr=0.1), image_size)
    with torch.no_grad():
        for norm in maml.backbone.norms:
            norm.weight[0].neg_()
    batch = episodes(n_episodes, image_size)
    found = torch.autograd.grad(maml.meta_loss(batch).sum(), list(maml.parameters()))
    for ours, plain in zip(found, plain_meta_gradient(maml, batch), strict=True):
        assert_close_to_the_largest(ours, plain)


def test_a_backbone_that_knows_no_side_by_side_gives_the_same_gradient() -> None:
    batch = episodes(3)
    gradients = []
    for wrap in (lambda net: net, OneByOne):
        maml = learner(MAMLConfig(inner_steps=2, inner_lr=0.1))
        maml.backbone = wrap(maml.backbone)
        gradients.append(torch.autograd.grad(maml.meta_loss(batch).sum(), list(maml.parameters())))
    for side_by_side, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(side_by_side, alone, rtol=1e-9, atol=1e-12)


def test_the_weight_of_an_episodes_loss_weighs_its_gradient() -> None:
    maml, batch = learner(MAMLConfig(inner_lr=0.1)), episodes(2)
    parameters = list(maml.parameters())
    weighed = torch.autograd.grad((maml.meta_loss(batch) * torch.tensor([0.25, 2.0])).sum(), parameters)
    apart = [torch.autograd.grad(maml.meta_loss(one).sum(), parameters) for one in batch.one_by_one()]
    for found, first, second in zip(weighed, *apart, strict=True):
        torch.testing.assert_close(found, 0.25 * first + 2.0 * second, rtol=1e-9, atol=1e-12)


def test_vmap_over_grad_with_affine_batch_norm_is_wrong_in_torch_itself() -> None:
    """Why no learner is built on vmap. Should this fail, torch was mended and the docs may say so."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 6, 2, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1]).expand(3, 6)
    weights = (torch.randn(2, 2, 3, 3), torch.rand(2) + 0.5, torch.randn(2))

    def loss(p: tuple[Tensor, ...], images: Tensor, labels: Tensor) -> Tensor:
        z = F.batch_norm(F.conv2d(images, p[0], padding=1), None, None, p[1], p[2], training=True)
        return F.cross_entropy(z.relu().mean((2, 3)), labels)

    def adapted_loss(p: tuple[Tensor, ...], images: Tensor, labels: Tensor) -> Tensor:
        steps = torch.func.grad(loss)(p, images, labels)
        return loss(tuple(w - 0.5 * g for w, g in zip(p, steps, strict=True)), images, labels)

    def mean_over_episodes(p: tuple[Tensor, ...]) -> Tensor:
        return torch.func.vmap(adapted_loss, in_dims=(None, 0, 0))(p, x, y).mean()

    def by_a_loop(p: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([adapted_loss(p, x[i], y[i]) for i in range(3)]).mean()

    vmapped, looped = torch.func.grad(mean_over_episodes)(weights), torch.func.grad(by_a_loop)(weights)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(vmapped, looped, strict=True))
    assert worst > 1e-4


class OneByOne(nn.Module):
    """The same backbone without `forward_each`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, n_reference: int | None) -> Tensor:
        return self.backbone(images, n_reference)


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
    adapted = maml.adapt(
        EpisodeBatch(
            support_x=x, support_y=y, query_x=x, query_y=y, n_way=2, keys=torch.zeros(1, dtype=torch.int64)
        ).support
    )
    # both probabilities are 1/2, so dL/dw = mean((p - onehot) x) = (-1/2, 1/2) and dL/db = 0
    assert adapted.weights["head.weight"].flatten().tolist() == pytest.approx([0.25, -0.25])
    assert adapted.weights["head.bias"][0].tolist() == pytest.approx([0.0, 0.0])


def test_adapting_under_no_grad_keeps_no_graph_and_agrees_with_adapting_for_training() -> None:
    maml = learner(MAMLConfig(eval_inner_steps=2))
    support = episodes().support
    with torch.no_grad():
        light = maml.adapt(support)
    heavy = maml.adapt(support)
    assert not any(weight.requires_grad for weight in light.weights.values())
    assert all(weight.requires_grad for weight in heavy.weights.values())
    assert all(torch.allclose(light.weights[name], heavy.weights[name]) for name in light.weights)
