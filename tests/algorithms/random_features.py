"""Random problems for learners that see features alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.episodes.episode import Support


@dataclass(frozen=True, kw_only=True)
class FeatureProblem:
    """One episode: features x (S, D) with labels y (S,), and queries (Q, D), in float64."""

    x: Tensor
    y: Tensor
    queries: Tensor

    @property
    def support(self) -> Support:
        return Support(x=self.x[None], y=self.y[None], n_way=int(self.y.max()) + 1)


def problems(*, n_way: int = 4, k_shot: int = 5, n_features: int = 12, n_problems: int = 5) -> Iterator[FeatureProblem]:
    for seed in range(n_problems):
        draw = torch.Generator().manual_seed(seed)
        centres = torch.randn(n_way, n_features, generator=draw, dtype=torch.float64)
        y = torch.arange(n_way).repeat_interleave(k_shot)
        noise = torch.randn(2, len(y), n_features, generator=draw, dtype=torch.float64)
        x, queries = centres[y] + 0.7 * noise
        yield FeatureProblem(x=x, y=y, queries=queries)
