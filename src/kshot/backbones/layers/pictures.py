"""Pictures as a network of pictures expects them.

Shapes: B pictures, C channels of an item, H = W.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pictures(nn.Module):
    """A network behind what its pixels have to be: three channels, one size, and standardised.

    `input_size` is the side in pixels to which items (B, C, H, W) are resized, bilinear and antialiased; None leaves
    them. `mean` and `std` (3,) of pixels in 0..1 are state, like the weights that they belong to: 0 and 1 in a network
    that is trained from scratch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, input_size: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.input_size = input_size
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.expand(-1, 3, -1, -1)
        if self.input_size is not None and self.input_size != x.shape[-1]:
            side = (self.input_size, self.input_size)
            x = F.interpolate(x, side, mode="bilinear", antialias=True)
        features: Tensor = self.network((x - self.mean[:, None, None]) / self.std[:, None, None])
        return features


def without_noise(network: nn.Module) -> nn.Module:
    """The same network, with its dropout and stochastic depth off: episodes are the same in any order."""
    for module in network.modules():
        if type(module).__name__.startswith(("Dropout", "StochasticDepth", "DropPath")):
            for rate in ("p", "drop_prob"):
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)
    return network
