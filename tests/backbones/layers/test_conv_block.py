"""The block against textbook layers, in value and in first and second derivatives, in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.backbones.layers.conv_block import conv_block, conv_block_folded

pytestmark = pytest.mark.usefixtures("kernels")

EPS = 1e-5
SIZES = [2, 3, 7, 18]
IMAGES = 17  # more than two chunks of the native kernels


def parameters(channels: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels, slopes of either sign, offsets."""
    torch.manual_seed(0)
    slope = torch.linspace(-1.5, 1.0, outputs, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, dtype=torch.float64)
    return weight, slope, torch.randn(outputs, dtype=torch.float64)


def images(n: int, channels: int, size: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, channels, size, size, dtype=torch.float64)


def textbook(x: Tensor, weight: Tensor, slope: Tensor, offset: Tensor, n_reference: int, groups: int = 1) -> Tensor:
    y = F.conv2d(x, weight, padding=1, groups=groups)
    var, mean = torch.var_mean(y[:n_reference], dim=(0, 2, 3), correction=0)
    normalised = (y - mean[:, None, None]) / (var[:, None, None] + EPS).sqrt()
    return F.max_pool2d(F.relu(normalised * slope[:, None, None] + offset[:, None, None]), 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_reference", [5, 3], ids=["own statistics", "of the first three"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels-last"])
def test_value_and_gradients_are_those_of_the_layers(size: int, n_reference: int, layout: torch.memory_format) -> None:
    x = images(5, 2, size).to(memory_format=layout).requires_grad_()
    inputs = (x, *(p.requires_grad_() for p in parameters(2, 4)))
    ours = conv_block(*inputs, n_reference=n_reference, eps=EPS)
    expected = textbook(*inputs, n_reference)
    torch.testing.assert_close(ours, expected)
    cotangent = torch.randn(ours.shape, dtype=torch.float64)
    for found, plain in zip(
        torch.autograd.grad(ours, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels-last"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("channels", "outputs"), [(2, 4), (16, 19)], ids=["few channels", "native convolutions"])
def test_second_derivatives_are_those_of_the_layers(
    size: int, layout: torch.memory_format, groups: int, channels: int, outputs: int
) -> None:
    x = images(5, groups * channels, size).to(memory_format=layout).requires_grad_()
    inputs = (x, *(p.requires_grad_() for p in parameters(channels, groups * outputs)))
    cotangent = torch.randn(5, groups * outputs, size // 2, size // 2, dtype=torch.float64, requires_grad=True)
    directions = [torch.randn(p.shape, dtype=torch.float64) for p in inputs]
    found = []
    for y in (conv_block(*inputs, n_reference=5, eps=EPS, groups=groups), textbook(*inputs, 5, groups)):
        gradients = torch.autograd.grad(y, inputs, cotangent, create_graph=True)
        paired = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        found.append(torch.autograd.grad(paired, (*inputs, cotangent), materialize_grads=True))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("outputs", [4, 19], ids=["less than a vector", "more than a vector"])
def test_a_block_on_images_is_that_of_the_layers(size: int, groups: int, outputs: int) -> None:
    """Images get no gradient, and with native kernels their block has another algorithm."""
    x = images(IMAGES, 2 * groups, size)
    inputs = [p.requires_grad_() for p in parameters(2, groups * outputs)]
    cotangent = torch.randn(IMAGES, groups * outputs, size // 2, size // 2, dtype=torch.float64, requires_grad=True)
    directions = [torch.randn(p.shape, dtype=torch.float64) for p in inputs]
    found = []
    ours = conv_block(x, *inputs, n_reference=IMAGES, eps=EPS, groups=groups)
    for y in (ours, textbook(x, *inputs, IMAGES, groups)):
        gradients = torch.autograd.grad(y, inputs, cotangent, create_graph=True)
        paired = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        second = torch.autograd.grad(paired, (*inputs, cotangent), materialize_grads=True)
        found.append((y, *gradients, *second))
    for one, plain in zip(*found, strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("of_images", [True, False])
def test_slopes_and_offsets_may_have_any_strides(of_images: bool) -> None:
    x = images(5, 2, 7).requires_grad_(not of_images)
    weight, slope, offset = parameters(2, 4)
    strided = torch.stack([slope, offset, offset], dim=1).requires_grad_()
    one = torch.full((), 0.7, dtype=torch.float64, requires_grad=True)
    found = []
    for block in (lambda *p: conv_block(*p, n_reference=5, eps=EPS), lambda *p: textbook(*p, 5)):
        y = block(x, weight, strided[:, 0], strided[:, 1]) + block(x, weight, one.expand(4), strided[:, 1])
        first = torch.autograd.grad(y.square().sum(), (strided, one), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (strided, one))
        found.append((*first, *second))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_parameters_of_another_type_are_left_to_torch() -> None:
    weight, slope, offset = parameters(1, 4)
    x, kernels = images(5, 1, 6).float(), weight.float()
    mixed = conv_block(x, kernels, slope.float(), offset.double(), n_reference=5, eps=EPS)
    torch.testing.assert_close(
        mixed.double(), textbook(x.double(), kernels.double(), slope, offset, 5), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("channels", [4, 16])
def test_a_mean_that_is_large_beside_the_spread_costs_few_digits(channels: int) -> None:
    x = images(6, channels, 8).float()
    weight, slope, offset = (p.float() for p in parameters(channels, channels))
    weight = weight * 0.01
    weight[:, :, 1, 1] = 1200.0 / channels  # inputs around 1 give outputs around 1,200 that vary by a few
    x = (1 + 0.0005 * channels**0.5 * x).requires_grad_()
    ours = conv_block(x, weight, slope, offset, n_reference=6, eps=EPS)
    exact = textbook(x.double(), weight.double(), slope.double(), offset.double(), 6)
    inner = slice(1, 3)  # away from the border, whose zeros make outputs of another size
    torch.testing.assert_close(ours[..., inner, inner].double(), exact[..., inner, inner], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [2, 16])
def test_what_is_not_finite_shows(channels: int) -> None:
    x = images(3, channels, 7).float()
    x[0, 0, 6, 6] = float("inf")  # in the row that pooling leaves over
    x.requires_grad_()
    y = conv_block(x, *(p.float() for p in parameters(channels, channels)), n_reference=3, eps=EPS)
    assert not torch.isfinite(y).all()


def test_third_derivatives_are_refused() -> None:
    """The formulas end at the second; autograd would go on through them and be wrong."""
    x = images(3, 1, 4).requires_grad_()
    slope = torch.ones(2, dtype=torch.float64, requires_grad=True)
    weight, _, offset = parameters(1, 2)
    y = conv_block(x, weight, slope, offset, n_reference=3, eps=EPS)
    (first,) = torch.autograd.grad(y.square().sum(), slope, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), slope, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_images_that_are_all_alike_give_finite_numbers() -> None:
    inputs = [p.float().requires_grad_() for p in parameters(1, 4)]
    y = conv_block(torch.full((3, 1, 8, 8), 0.3), *inputs, n_reference=3, eps=EPS)
    assert all(torch.isfinite(g).all() for g in (y, *torch.autograd.grad(y.sum(), inputs)))


def test_the_first_of_equal_maxima_gets_the_gradient() -> None:
    """As with torch's pooling: flat image regions are common."""
    x = (images(4, 1, 8) > 0).double()
    inputs = [p.requires_grad_() for p in parameters(1, 4)]
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    ours, plain = conv_block(x, *inputs, n_reference=4, eps=EPS), textbook(x, *inputs, 4)
    cotangent = torch.randn(plain.shape, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, cotangent), torch.autograd.grad(plain, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_second_derivatives_equal_finite_differences() -> None:
    x = images(3, 1, 4).requires_grad_()
    inputs = (x, *(p.requires_grad_() for p in parameters(1, 2)))
    assert torch.autograd.gradgradcheck(lambda *p: conv_block(*p, n_reference=3, eps=EPS), inputs)


def test_a_slope_of_zero_keeps_its_gradient() -> None:
    weight, slope, offset = parameters(2, 4)
    slope = torch.zeros_like(slope).requires_grad_()
    y = conv_block(images(5, 2, 6), weight, slope, offset.abs() + 1, n_reference=5, eps=EPS)
    assert (torch.autograd.grad(y.sum(), slope)[0].abs() > 1e-6).all()


@pytest.mark.parametrize("channels", [2, 16])
def test_groups_are_blocks_side_by_side(channels: int) -> None:
    weight, slope, offset = parameters(channels, 3 * channels)
    x = images(5, 3 * channels, 7)
    together = conv_block(x, weight, slope, offset, n_reference=5, eps=EPS, groups=3)
    for i in range(3):
        own = slice(channels * i, channels * i + channels)
        alone = conv_block(x[:, own], weight[own], slope[own], offset[own], n_reference=5, eps=EPS)
        torch.testing.assert_close(together[:, own], alone)


def test_a_given_normalisation_goes_into_the_kernels() -> None:
    weight, scale, shift = parameters(2, 4)
    x = images(5, 2, 7)
    y = F.conv2d(x, weight, padding=1) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(conv_block_folded(x, weight, scale, shift), F.max_pool2d(F.relu(y), 2))


def test_under_autocast_a_block_on_images_is_close() -> None:
    x, inputs = images(8, 1, 8).float(), [p.float().requires_grad_() for p in parameters(1, 4)]
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_block(x, *inputs, n_reference=8, eps=EPS)
    torch.testing.assert_close(y.float(), textbook(x, *inputs, 8), rtol=0.05, atol=0.05)


def test_under_autocast_the_value_is_close_and_the_gradient_flows() -> None:
    inputs = [t.float().requires_grad_() for t in (images(8, 2, 8), *parameters(2, 4))]
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_block(*inputs, n_reference=8, eps=EPS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), textbook(*inputs, 8), rtol=0.05, atol=0.05)
    gradients = torch.autograd.grad(y.float().square().sum(), inputs)
    expected = torch.autograd.grad(textbook(*inputs, 8).square().sum(), inputs)
    for found, plain in zip(gradients, expected, strict=True):
        # a maximum that is one of two equal numbers in bfloat16 sends its gradient elsewhere
        assert float(F.cosine_similarity(found.flatten(), plain.flatten(), dim=0)) > 0.9
