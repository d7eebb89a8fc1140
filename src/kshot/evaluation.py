"""Accuracy of a learner on frozen episodes of held-out classes, with intervals.

Shapes: E episodes, B episodes scored together, N way, Q queries a class, D features.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from scipy.stats import t as student_t

from kshot.algorithms.learner import Flatten, Learner, MetricLearner
from kshot.algorithms.protonet import ProtoNet
from kshot.episode_loader import Gather, load_episodes
from kshot.live_lines import LiveLines, silent_lines
from kshot.sampling import EpisodeIndices, Int
from kshot.settings import STRICT

_EMBED_AT_ONCE = 512  # items in one forward pass
_EPISODES_AT_ONCE = 64  # scored together from features, within this many numbers
_NUMBERS_AT_ONCE = 32_000_000


@settings(frozen=True, kw_only=True, config=STRICT)
class EvaluationSettings:
    worst_classes: Annotated[int, Field(ge=1)] = 10  # listed in the report


@dataclass(frozen=True, kw_only=True)
class EpisodeScores:
    """Queries answered right in each episode: correct (E, N) of n_query each; class_ids (E, N)."""

    correct: Int
    class_ids: Int
    n_query: int

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Fraction right in each episode (E,)."""
        fractions: NDArray[np.float64] = self.correct.mean(axis=1) / self.n_query
        return fractions


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    half_width: float


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """95% Student-t interval of the mean over episodes.

    It covers the sampling of episodes, not that of classes: episodes share the same items.
    """
    n = len(values)
    error = float(values.std(ddof=1)) / n**0.5
    return Interval(mean=float(values.mean()), half_width=float(student_t.ppf(0.975, n - 1)) * error)


@torch.no_grad()
def score_episodes(
    learner: Learner[Any], indices: EpisodeIndices, gather: Gather, *, lines: LiveLines | None = None
) -> EpisodeScores:
    """`classify(adapt(support), query)` on every episode, saying on `lines` how far it is.

    A metric learner sees each item alone, so the items are embedded once and episodes are gathers.
    """
    if isinstance(learner, MetricLearner):
        items, positions = _used_items(indices)
        features = torch.cat([learner.embed(gather(chunk)) for chunk in _chunks(items)])
        per_episode = features[0].numel() * (positions.support[0].size + positions.query[0].size)
        at_once = min(max(1, _NUMBERS_AT_ONCE // per_episode), _EPISODES_AT_ONCE)
        return _score(
            learner.on_features(),
            positions,
            lambda index: features[torch.from_numpy(index)],
            at_once,
            lines or silent_lines(),
        )
    return _score(learner, indices, gather, learner.episodes_at_once, lines or silent_lines())


def score_pixels(indices: EpisodeIndices, gather: Gather) -> EpisodeScores:
    """The nearest-centroid baseline on raw pixels, on the same episodes."""
    with torch.no_grad():
        return score_episodes(ProtoNet(Flatten()), indices, gather)


def _score(
    learner: Learner[Any], indices: EpisodeIndices, gather: Gather, at_once: int, lines: LiveLines
) -> EpisodeScores:
    n_query = indices.query.shape[2]
    correct = []
    for start in range(0, len(indices), at_once):
        episodes = load_episodes(indices[start : start + at_once], gather)
        predicted = learner.classify(learner.adapt(episodes.support), episodes.query_x).argmax(2)
        right = (predicted == episodes.query_y).view(-1, episodes.n_way, n_query).sum(2)
        correct.append(right.cpu().numpy())
        lines.mention(partial("{:,} of {:,} episodes scored".format, start + len(episodes), len(indices)))
    return EpisodeScores(correct=np.concatenate(correct), class_ids=indices.class_ids, n_query=n_query)


def _used_items(indices: EpisodeIndices) -> tuple[Int, EpisodeIndices]:
    """The items that occur (I,), and the same episodes pointing at positions in that list."""
    n_support = indices.support.shape[2]
    both = np.concatenate([indices.support, indices.query], axis=2)
    items, flat = np.unique(both, return_inverse=True)
    positions = flat.reshape(both.shape)
    return items, EpisodeIndices(
        support=positions[:, :, :n_support], query=positions[:, :, n_support:], class_ids=indices.class_ids
    )


def _chunks(items: Int) -> list[Int]:
    return [items[start : start + _EMBED_AT_ONCE] for start in range(0, len(items), _EMBED_AT_ONCE)]


def class_accuracy(scores: EpisodeScores) -> tuple[Int, Int, NDArray[np.float64]]:
    """Classes that occur (C,), queries asked of each, and the fraction answered right."""
    classes, positions = np.unique(scores.class_ids, return_inverse=True)
    positions = positions.ravel()
    asked = np.bincount(positions) * scores.n_query
    right = np.bincount(positions, weights=scores.correct.ravel())
    return classes, asked, right / asked
