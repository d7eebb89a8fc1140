"""What a model costs to use: time and size, measured on this machine.

Shapes: N way, K shot.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kshot.algorithms.answering import served
from kshot.algorithms.learner import Learner
from kshot.data.items.contract import ItemKind
from kshot.episodes.episode import EpisodeShape, Support

_REPEATS, _WARM_UP = 15, 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`adapt_ms` for the support set of one episode, `classify_ms` for one query by itself: medians."""

    adapt_ms: float
    classify_ms: float
    parameters: int


@torch.no_grad()
def measure_cost(learner: Learner[Any], item: ItemKind, shape: EpisodeShape) -> Cost:
    """On example items in the mode that is served, where the learner's parameters are."""
    in_use = served(learner).eval()
    device = next(learner.parameters()).device
    items = item.tensor(torch.from_numpy(item.example(shape.n_way * shape.k_shot)).to(device))[None]
    labels = torch.arange(shape.n_way, device=device).repeat_interleave(shape.k_shot)[None]
    support = Support(x=items, y=labels, n_way=shape.n_way)
    adapted = in_use.adapt(support)
    return Cost(
        adapt_ms=_median_ms(lambda: in_use.adapt(support), device),
        classify_ms=_median_ms(lambda: in_use.classify(adapted, items[:, :1]), device),
        parameters=sum(parameter.numel() for parameter in learner.parameters()),
    )


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_WARM_UP + _REPEATS):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[_WARM_UP:])
