"""Accuracy of a learner on frozen episodes of held-out classes, with intervals.

Shapes: E episodes, B episodes scored together, N way, Q queries a class, D features.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from scipy.optimize import minimize_scalar
from scipy.stats import t as student_t
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.learner import Learner, MetricLearner
from kshot.episode_loader import Gather, load_episodes
from kshot.live_lines import LiveLines, silent_lines
from kshot.sampling import EpisodeIndices, Int
from kshot.seeding import generator
from kshot.settings import STRICT

Float = NDArray[np.float64]

_EMBED_AT_ONCE = 512  # items in one forward pass
_EPISODES_AT_ONCE = 64  # scored together from features, within this many numbers
_NUMBERS_AT_ONCE = 32_000_000
_LOG_TEMPERATURES = (-4.0, 8.0)


@settings(frozen=True, kw_only=True, config=STRICT)
class EvaluationSettings:
    worst_classes: Annotated[int, Field(ge=1)] = 10  # listed in the report
    pretrain_steps: Annotated[int, Field(ge=0)] = 0  # of the supervised baseline, 128 images each; 0 leaves it out


@dataclass(frozen=True, kw_only=True)
class EpisodeScores:
    """Answers to the queries of E episodes: predicted (E, N, Q), positions on the N axis; class_ids (E, N).

    confidence (E, N, Q) is the probability of the predicted class, and tempered the same with the logits
    divided by the temperature that was given.
    """

    predicted: Int
    class_ids: Int
    confidence: Float
    tempered: Float

    @property
    def n_query(self) -> int:
        return int(self.predicted.shape[2])

    @property
    def right(self) -> NDArray[np.bool_]:
        """(E, N, Q)."""
        right: NDArray[np.bool_] = self.predicted == np.arange(self.predicted.shape[1])[:, None]
        return right

    @property
    def correct(self) -> Int:
        """Queries of each class answered right (E, N)."""
        correct: Int = self.right.sum(axis=2)
        return correct

    @property
    def accuracy(self) -> Float:
        """Fraction right in each episode (E,)."""
        fractions: Float = self.right.mean(axis=(1, 2))
        return fractions


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    half_width: float


def mean_interval(values: Float) -> Interval:
    """95% Student-t interval of the mean over episodes.

    It covers the sampling of episodes, not that of classes: episodes share the same items.
    """
    n = len(values)
    error = float(values.std(ddof=1)) / n**0.5
    return Interval(mean=float(values.mean()), half_width=float(student_t.ppf(0.975, n - 1)) * error)


@torch.no_grad()
def score_episodes(
    learner: Learner[Any],
    indices: EpisodeIndices,
    gather: Gather,
    *,
    temperature: float = 1.0,
    lines: LiveLines | None = None,
) -> EpisodeScores:
    """`classify(adapt(support), query)` on every episode, saying on `lines` how far it is."""
    predicted, confidence, tempered = [], [], []
    for logits in _logits(learner, indices, gather, lines or silent_lines()):
        predicted.append(logits.argmax(2).cpu().numpy())
        confidence.append(logits.softmax(2).amax(2).double().cpu().numpy())
        tempered.append((logits / temperature).softmax(2).amax(2).double().cpu().numpy())
    per_class = indices.query.shape
    return EpisodeScores(
        predicted=np.concatenate(predicted).reshape(per_class),
        class_ids=indices.class_ids,
        confidence=np.concatenate(confidence).reshape(per_class),
        tempered=np.concatenate(tempered).reshape(per_class),
    )


@torch.no_grad()
def fit_temperature(learner: Learner[Any], indices: EpisodeIndices, gather: Gather) -> float:
    """What to divide the logits by, so that the queries of these episodes are least surprising.

    Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    logits = torch.cat(list(_logits(learner, indices, gather, silent_lines()))).double()
    labels = torch.arange(indices.query.shape[1]).repeat_interleave(indices.query.shape[2])
    labels = labels.repeat(len(indices)).to(logits.device)

    def surprise(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.flatten(0, 1) / math.exp(log_temperature), labels))

    return math.exp(float(minimize_scalar(surprise, bounds=_LOG_TEMPERATURES, method="bounded").x))


def _logits(learner: Learner[Any], indices: EpisodeIndices, gather: Gather, lines: LiveLines) -> Iterator[Tensor]:
    """(B, N * Q, N) of some episodes after the other.

    A metric learner sees each item alone, so the items are embedded once and episodes are gathers.
    """
    if isinstance(learner, MetricLearner):
        items, positions = _used_items(indices)
        features = torch.cat([learner.embed(gather(chunk)) for chunk in _chunks(items)])
        per_episode = features[0].numel() * (positions.support[0].size + positions.query[0].size)
        at_once = min(max(1, _NUMBERS_AT_ONCE // per_episode), _EPISODES_AT_ONCE)
        learner, indices = learner.on_features(), positions

        def gather(index: Int) -> Tensor:
            return features[torch.from_numpy(index)]
    else:
        at_once = learner.episodes_at_once
    for start in range(0, len(indices), at_once):
        episodes = load_episodes(indices[start : start + at_once], gather)
        yield learner.classify(learner.adapt(episodes.support), episodes.query_x)
        lines.mention(partial("{:,} of {:,} episodes scored".format, start + len(episodes), len(indices)))


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


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Queries by confidence, in bins of equal width: mean confidence, fraction right and number in each (K,)."""

    confidence: Float
    accuracy: Float
    count: Int

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy, weighted by the queries in the bin; empty ones count nothing."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.count))


def calibration_bins(confidence: Float, right: NDArray[np.bool_], n_bins: int = 15) -> Bins:
    """Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015."""
    where = np.minimum((confidence.ravel() * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(where, minlength=n_bins)
    filled = np.maximum(count, 1)
    return Bins(
        confidence=np.bincount(where, weights=confidence.ravel(), minlength=n_bins) / filled,
        accuracy=np.bincount(where, weights=right.ravel(), minlength=n_bins) / filled,
        count=count,
    )


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """Pairs of classes that were taken for one another: `true` was called `predicted` in `times` of `asked` queries.

    asked counts the queries of episodes that hold both classes. All (P,), the most frequent fraction first.
    """

    true: Int
    predicted: Int
    times: Int
    asked: Int


def confusions(scores: EpisodeScores) -> Confusions:
    n_episodes, _, n_query = scores.predicted.shape
    n = int(scores.class_ids.max()) + 1
    met = scores.class_ids[:, :, None] * n + scores.class_ids[:, None, :]  # (E, N, N) pairs of an episode
    pairs, together = np.unique(met, return_counts=True)
    called = np.take_along_axis(scores.class_ids, scores.predicted.reshape(n_episodes, -1), axis=1)
    answered = np.repeat(scores.class_ids, n_query, axis=1) * n + called
    wrong, times = np.unique(answered[answered // n != answered % n], return_counts=True)
    asked = together[np.searchsorted(pairs, wrong)] * n_query
    order = np.argsort(-times / asked, kind="stable")
    return Confusions(true=wrong[order] // n, predicted=wrong[order] % n, times=times[order], asked=asked[order])


def class_interval(scores: EpisodeScores, *, seed: int, n_resamples: int = 2000) -> tuple[float, float]:
    """95% percentile bootstrap interval of the accuracy over classes: what other held-out classes might give.

    Classes are drawn with replacement, each with all its queries. Efron, "Bootstrap Methods", 1979.
    """
    _, asked, accuracy = class_accuracy(scores)
    n_classes = len(asked)
    draws = generator(seed, "class_interval").multinomial(n_classes, np.full(n_classes, 1 / n_classes), n_resamples)
    means = (draws * asked * accuracy).sum(axis=1) / (draws * asked).sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def class_accuracy(scores: EpisodeScores) -> tuple[Int, Int, Float]:
    """Classes that occur (C,), queries asked of each, and the fraction answered right."""
    classes, positions = np.unique(scores.class_ids, return_inverse=True)
    positions = positions.ravel()
    asked = np.bincount(positions) * scores.n_query
    right = np.bincount(positions, weights=scores.correct.ravel())
    return classes, asked, right / asked
