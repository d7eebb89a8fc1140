"""3x3 convolution, batch normalisation, ReLU and 2x2 max-pooling as one block, twice differentiable and fast.

Two facts make it fast and leave the result as it is. Max-pooling commutes with what follows it where the
slope of the normalisation is not negative, so affine map and ReLU run on the pooled quarter; a negative
slope is made positive by flipping the sign of the convolution's output channel. And every derivative
that second-order meta-learning needs is a convolution, one of its two gradients, or a formula below; torch's
own double backward of batch normalisation and convolution takes several times as long.

Several episodes, each with weights of its own, run side by side as groups of channels.

The convolutions, and the passes over memory that are left, run in native kernels where a process uses them
(`native.py`).

Shapes: B images, G groups, I input and O output channels of a group, C = G * O, H,W, h,w = H//2,W//2.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kshot.backbones.layers import native
from kshot.backbones.layers.native_block import ConvReluPool, NativeNormReluPool

_aten = torch.ops.aten
_PAIR_OF_ONES, _NO_PADDING, _WINDOW = [1, 1], [0, 0], [2, 2]
_MAX_IMAGE_CHANNELS = 4
_NATIVE_CHANNELS = range(16, 257)  # with fewer or more, of input or output, torch's convolutions are the faster ones


def conv_block(
    x: Tensor, weight: Tensor, slope: Tensor, offset: Tensor, *, n_reference: int, eps: float, groups: int = 1
) -> Tensor:
    """(B, G*I, H, W) -> (B, C, h, w), normalised by the statistics of the first `n_reference` images.

    weight (C, I, 3, 3); slope and offset (C,) of the normalisation. Under autocast the convolution runs
    in its type and the statistics in float32; with native kernels a block on images is float32 as a whole.
    """
    by_all = n_reference == len(x)
    if by_all and native.serves(x, weight, slope, offset):
        if _are_images(x, groups):
            return _block_on_images(x, weight, slope, offset, eps, groups)
        if not torch.is_autocast_enabled(x.device.type):
            return _apply(NativeNormReluPool, _convolve(x, weight, groups), slope, offset, eps)
    sign = _sign(slope)
    x = _convolve(x, weight * sign[:, None, None, None], groups)
    slope = slope * sign
    if by_all:
        return _apply(_NormReluPool, x, slope, offset, eps)
    var, mean = torch.var_mean(at_least_float32(x[:n_reference]), dim=(0, 2, 3), correction=0)
    scale = slope * (var + eps).rsqrt()
    return _affine(F.max_pool2d(x, 2), scale, offset - mean * scale).relu()


def conv_block_folded(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(B, I, H, W) -> (B, O, h, w) with a given normalisation, scale * convolution + shift, inside the convolution."""
    return F.max_pool2d(F.conv2d(x, weight * scale[:, None, None, None], shift, padding=1), 2).relu()


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """(B, I, H, W) -> (B, O, H, W): the convolution alone, for what is normalised by other means."""
    return _convolve(x, weight, groups=1)


def _apply(function: type[Function], *inputs: Any) -> Tensor:
    y: Tensor = function.apply(*inputs)
    return y


def _are_images(x: Tensor, groups: int) -> bool:
    """Whether x are images, which need no gradient and have few channels."""
    return not x.requires_grad and x.shape[1] <= _MAX_IMAGE_CHANNELS * groups


def _block_on_images(x: Tensor, weight: Tensor, slope: Tensor, offset: Tensor, eps: float, groups: int) -> Tensor:
    """The block where x (B, G*I, H, W) are images.

    The statistics of a convolution follow from those of the patches that it sees: a mean w.m, a variance
    w.S.w. So they are known before the convolution, whose kernels take in the normalisation, and its output
    is never stored. What is differentiated is linear in the kernels but for the places of the maxima.
    """
    m, s = native.patch_moments(x, groups)
    kernels = weight.reshape(groups, len(slope) // groups, -1).double()  # (G, O, K)
    mean = (kernels @ m[:, :, None])[:, :, 0]
    var = (kernels @ s * kernels).sum(2).clamp_min(0)
    scale = slope.view(groups, -1) * (var + eps).rsqrt()
    shift = offset.view(groups, -1) - mean * scale
    scaled = (kernels * scale[:, :, None]).transpose(1, 2)
    return _apply(ConvReluPool, x, scaled.to(x.dtype), shift.to(x.dtype))


def _sign(slope: Tensor) -> Tensor:
    """1 or -1, never 0: the derivative with respect to a slope of 0 must stay."""
    return torch.where(slope.detach() < 0, -1.0, 1.0).to(slope.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if _is_half(x) else x


def _is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None]


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))


def _sums(x: Tensor) -> Tensor:
    """Sums over images and positions (C,), in float32 where x is shorter."""
    return x.sum((0, 2, 3), dtype=torch.float32 if _is_half(x) else None)


def _unpool(pooled: Tensor, x: Tensor, where: Tensor) -> Tensor:
    """(B, C, h, w) put back to where the maxima were, zeros elsewhere: (B, C, H, W)."""
    unpooled: Tensor = _aten.max_pool2d_with_indices_backward(
        pooled, x, _WINDOW, _WINDOW, _NO_PADDING, _PAIR_OF_ONES, False, where
    )
    return unpooled


def _at_maxima(x: Tensor, where: Tensor) -> Tensor:
    """(B, C, H, W) read where the maxima were: (B, C, h, w). Both are channels-last, or are made so."""
    b, c, h, w = where.shape
    positions = where.permute(0, 2, 3, 1).reshape(b, h * w, c)
    values = x.permute(0, 2, 3, 1).reshape(b, -1, c).gather(1, positions)
    return values.view(b, h, w, c).permute(0, 3, 1, 2)


class _NormReluPool(Function):
    """y = relu(pool(slope * xhat + offset)), xhat = (x - mean) / sqrt(var + eps), slope >= 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, offset: Tensor, eps: float) -> Tensor:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        maxima, where = _aten.max_pool2d_with_indices(x, _WINDOW, _WINDOW)
        inverse_std = (var + eps).rsqrt_()
        scale = slope * inverse_std
        y = _affine(maxima, scale, offset - mean * scale).relu_()
        ctx.save_for_backward(x, slope, maxima, where, y, mean, inverse_std)
        return y

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormReluPoolBackward.apply(y_bar, *ctx.saved_tensors), None


class _NormReluPoolBackward(Function):
    """The gradients of the block, and by `backward` the gradients of those.

    Ioffe and Szegedy, "Batch Normalization", 2015, section 3, with the gradient g of the normalised
    image zero but at the maxima: x_bar = slope r (g - sum(g)/M - xhat sum(g xhat)/M).
    """

    @staticmethod
    def forward(
        ctx: Any,
        y_bar: Tensor,
        x: Tensor,
        slope: Tensor,
        maxima: Tensor,
        where: Tensor,
        y: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        g = _aten.threshold_backward(y_bar.to(y.dtype), y, 0)
        offset_bar = _sums(g)
        slope_bar = (_sums(g * maxima) - mean * offset_bar) * inverse_std
        n = x.numel() // x.shape[1]
        scale = slope * inverse_std
        tilt = -scale * inverse_std * slope_bar / n
        x_bar = _unpool(g * _per_channel(scale, g), x, where)
        x_bar.add_(_per_channel(-scale * offset_bar / n - tilt * mean, x)).addcmul_(x, _per_channel(tilt, x))
        ctx.save_for_backward(g, x, slope, maxima, where, y, mean, inverse_std, offset_bar, slope_bar)
        return x_bar, slope_bar, offset_bar

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor, v_slope: Tensor, v_offset: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents v, v_slope, v_offset of the three gradients -> gradients of y_bar, x and slope.

        With u = v at the maxima, r = inverse_std and n = B*H*W, the pairing to differentiate is
        slope r q + v_slope sum(g phat) + v_offset sum(g), where
        q = sum(g u) - (sum(g) sum(v) + sum(g phat) sum(v xhat)) / n.
        """
        g, x, slope, maxima, where, y, mean, r, sum_g, sum_g_phat = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        scale = slope * r
        u = _at_maxima(v, where)
        sum_v = _sums(v)
        sum_v_xhat = (_sums(v * x) - mean * sum_v) * r
        q = _sums(g * u) - (sum_g * sum_v + sum_g_phat * sum_v_xhat) / n

        of_phat = v_slope - scale * sum_v_xhat / n  # factor of phat in the gradient of g, of g in that of xhat
        g_bar = _affine(maxima, of_phat * r, v_offset - scale * sum_v / n - of_phat * r * mean)
        g_bar.addcmul_(u, _per_channel(scale, u))
        y_bar_bar = _aten.threshold_backward(g_bar, y, 0)

        of_v = -scale * sum_g_phat / n  # factor of v in the gradient of xhat
        mean_bar = (of_phat * sum_g + of_v * sum_v) / n
        mean_bar_xhat = (of_phat * sum_g_phat + of_v * sum_v_xhat) / n
        of_x = -(r * mean_bar_xhat + slope * q * r * r / n) * r
        x_bar = _unpool(g * _per_channel(r * of_phat, g), x, where)
        x_bar.add_(_per_channel(-r * mean_bar - of_x * mean, x)).addcmul_(v, _per_channel(r * of_v, v))
        x_bar.addcmul_(x, _per_channel(of_x, x))
        return y_bar_bar, x_bar, r * q, None, None, None, None, None


def _convolve(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    out: Tensor = _Convolution.apply(x, weight, groups)
    return out


def _is_native(weight_shape: torch.Size, groups: int, x: Tensor, other: Tensor) -> bool:
    """Whether the native kernels take a convolution of weights of this shape, or a gradient of it, of two tensors."""
    outputs, inputs = weight_shape[0] // groups, weight_shape[1]
    return inputs in _NATIVE_CHANNELS and outputs in _NATIVE_CHANNELS and native.serves(x, other)


def _torch_gradient(y_bar: Tensor, x: Tensor, weight: Tensor, groups: int, *, of_input: bool) -> Tensor:
    """The gradient of input or weight."""
    gradients: tuple[Tensor, Tensor, None] = _aten.convolution_backward(
        y_bar,
        x,
        weight,
        None,
        _PAIR_OF_ONES,
        _PAIR_OF_ONES,
        _PAIR_OF_ONES,
        False,
        _NO_PADDING,
        groups,
        [of_input, not of_input, False],
    )
    return gradients[0] if of_input else gradients[1]


class _Convolution(Function):
    """3x3, stride 1, padding 1. Linear in x and in weight, so its derivatives are convolutions again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        if _is_native(weight.shape, groups, x, weight):
            return native.convolve(x, weight, groups)
        return F.conv2d(x, weight, padding=1, groups=groups)

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_bar = _InputGradient.apply(y_bar, weight, x, ctx.groups) if ctx.needs_input_grad[0] else None
        weight_bar = _WeightGradient.apply(x, y_bar, weight, ctx.groups) if ctx.needs_input_grad[1] else None
        return x_bar, weight_bar, None


class _InputGradient(Function):
    """Bilinear in y_bar and weight; x gives its shape alone."""

    @staticmethod
    def forward(ctx: Any, y_bar: Tensor, weight: Tensor, x: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(y_bar, weight)
        ctx.groups = groups
        if _is_native(weight.shape, groups, y_bar, weight):
            return native.convolve_input_gradient(y_bar, weight, groups)
        return _torch_gradient(y_bar, x, weight, groups, of_input=True)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        y_bar, weight = ctx.saved_tensors
        of_y_bar = _Convolution.apply(v, weight, ctx.groups) if ctx.needs_input_grad[0] else None
        of_weight = _WeightGradient.apply(v, y_bar, weight, ctx.groups) if ctx.needs_input_grad[1] else None
        return of_y_bar, of_weight, None, None


class _WeightGradient(Function):
    """Bilinear in x and y_bar; weight gives its shape alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y_bar: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, y_bar)
        ctx.groups = groups
        if _is_native(weight.shape, groups, x, y_bar):
            return native.convolve_weight_gradient(x, y_bar, groups)
        return _torch_gradient(y_bar, x, weight, groups, of_input=False)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, y_bar = ctx.saved_tensors
        of_x = _InputGradient.apply(y_bar, v, x, ctx.groups) if ctx.needs_input_grad[0] else None
        of_y_bar = _Convolution.apply(x, v, ctx.groups) if ctx.needs_input_grad[1] else None
        return of_x, of_y_bar, None, None
