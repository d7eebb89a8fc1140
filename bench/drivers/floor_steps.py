"""What the machine needs for the network alone: a plain eager step, and nothing but the convolutions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import Part, Request
from bench.plain import Conv4
from bench.workloads import FLOOR_SIZES

_IMAGE_SIZE = 28


def prepare(request: Request) -> list[Part]:
    part = {"floor-plain": _plain, "floor-conv": _convolutions}[request.workload.name]
    return [part(n_images, request.width) for n_images in FLOOR_SIZES]


def _plain(n_images: int, width: int) -> Part:
    """Forward and backward of an ordinary module on images in the default layout."""
    network = Conv4(width)
    images = torch.rand(n_images, 1, _IMAGE_SIZE, _IMAGE_SIZE)

    def step() -> None:
        network.zero_grad()
        network(images).sum().backward()

    return Part(name=str(n_images), step=step, episodes=1)


def _convolutions(n_images: int, width: int) -> Part:
    """The four convolutions channels-last: forward, weight gradient, and input gradient but for the first."""
    layers = []
    for number in range(4):
        n_in, side = (1 if number == 0 else width), _IMAGE_SIZE >> number
        x = _channels_last(n_images, n_in, side)
        weight = torch.rand(width, n_in, 3, 3).to(memory_format=torch.channels_last)
        layers.append((x, weight, _channels_last(n_images, width, side), number > 0))

    def step() -> None:
        for x, weight, gradient, with_input in layers:
            F.conv2d(x, weight, padding=1)
            torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [with_input, True, False]
            )

    return Part(name=str(n_images), step=step, episodes=1)


def _channels_last(n_images: int, n_channels: int, side: int) -> Tensor:
    """Random images with channels-last strides, also where one channel makes both layouts the same memory."""
    return torch.rand(n_images, side, side, n_channels).permute(0, 3, 1, 2)
