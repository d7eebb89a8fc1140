"""Noise by key: the same numbers for an episode whatever stands beside it, and the same ones again for an answer.

Shapes: B episodes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.seeding import random_words

FIXED_KEY = 0
"""Of the noise of answers, which are to be the same again."""


def standard_normal(keys: Tensor, shape: Sequence[int], *, like: Tensor) -> Tensor:
    """(B, *shape) independent numbers of mean 0 and variance 1 of the keys (B,) int64, in the type of `like`.

    Those of an episode are a function of its key and the shape alone. Box and Muller, "A Note on the Generation of
    Random Normal Deviates", 1958.
    """
    n_numbers = math.prod(shape)
    words = random_words(keys[:, None], torch.arange(2 * n_numbers, device=keys.device))
    uniform = ((words >> 11 & (1 << 53) - 1).double() + 0.5) * 2.0**-53  # in (0, 1)
    radius, angle = uniform.view(-1, 2, n_numbers).unbind(1)
    normal = torch.sqrt(-2 * radius.log()) * torch.cos(2 * math.pi * angle)
    return normal.view(-1, *shape).to(like.dtype)


def gaussian(keys: Tensor, stream: int, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """The same, with a `stream` that tells the draws of one episode apart."""
    return standard_normal(random_words(keys, torch.full_like(keys, stream)), shape, like=like)


def fixed_keys(like: Tensor) -> Tensor:
    """Keys (B,) of answers about features (B, ...): every episode has the same one."""
    return torch.full((len(like),), FIXED_KEY, dtype=torch.int64, device=like.device)
