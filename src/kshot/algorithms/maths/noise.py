"""Normal noise as a function of keys, for learners whose answers are means over draws.

Shapes: B episodes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.seeding import random_words


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
