"""Networks of a user's own that are hard to export, each in its way."""

import torch
from torch import Tensor, nn


class LooksAtValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


class HasNoWordInOnnx(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x.flatten(1))


class IsAnotherWhenExported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + (1.0 if torch.compiler.is_exporting() else 0.0)


class HasLargeFeatures(nn.Module):
    """Far from the origin, so that squared distances of float32 have few digits left."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + 1000.0


def has_large_features(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 4), HasLargeFeatures())


def looks_at_values(shape: tuple[int, ...]) -> nn.Module:
    return _with_linear(LooksAtValues(), shape)


def has_no_word_in_onnx(shape: tuple[int, ...]) -> nn.Module:
    return _with_linear(HasNoWordInOnnx(), shape)


def is_another_when_exported(shape: tuple[int, ...]) -> nn.Module:
    return _with_linear(IsAnotherWhenExported(), shape)


def _with_linear(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(network, nn.Linear(torch.Size(shape).numel(), 4))
