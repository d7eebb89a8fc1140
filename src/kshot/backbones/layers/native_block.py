"""The native kernels as differentiable functions; `conv_block.py` has the formulas and composes them.

Shapes: see `native.py`.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kshot.backbones.layers import native


class NativeNormReluPool(Function):
    """max_pool(relu(slope * xhat + offset)), and its derivatives as `conv_block.py` has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, offset: Tensor, eps: float) -> Tensor:
        y, *saved = native.norm_relu_pool(x, slope, offset, eps)
        ctx.save_for_backward(x, slope, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormReluPoolBackward.apply(y_bar, *ctx.saved_tensors), None


class _NormReluPoolBackward(Function):
    @staticmethod
    def forward(ctx: Any, y_bar: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradients = native.norm_relu_pool_gradient(y_bar, *saved)
        ctx.save_for_backward(y_bar, *saved, *gradients[1:])
        return gradients

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return *native.norm_relu_pool_second(*cotangents, *ctx.saved_tensors), None, None, None, None


class ConvReluPool(Function):
    """relu(max_pool(convolution) + shift) of images x, which get no gradient; weight (G, K, O), shift (G, O).

    Linear in weight and shift where the places of the maxima stay, so its derivatives of every order are
    the two functions below.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        y, where = native.conv_relu_pool(x, weight, shift)
        ctx.save_for_backward(x, where)
        ctx.groups = len(shift)
        return y

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_ConvReluPoolGradient.apply(y_bar, *ctx.saved_tensors, ctx.groups)


class _ConvReluPoolGradient(Function):
    """Linear in y_bar; `_ConvAtMaxima` is its transpose."""

    @staticmethod
    def forward(ctx: Any, y_bar: Tensor, x: Tensor, where: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, where)
        return native.conv_relu_pool_gradient(y_bar, x, where, groups)

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_shift: Tensor) -> tuple[Tensor | None, ...]:
        return _ConvAtMaxima.apply(v, v_shift, *ctx.saved_tensors), None, None, None


class _ConvAtMaxima(Function):
    """The convolution plus shift at the places of the maxima: linear in weight and shift together."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shift: Tensor, x: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(x, where)
        ctx.groups = len(shift)
        return native.conv_at_maxima(x, weight, shift, where)

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        return *_ConvReluPoolGradient.apply(y_bar, *ctx.saved_tensors, ctx.groups), None, None
