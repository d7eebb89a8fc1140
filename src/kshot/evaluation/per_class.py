"""What the answers of a learner say about single classes.

Shapes: C classes that occur, P pairs of classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kshot.data.class_table import Int
from kshot.evaluation.scoring import EpisodeScores
from kshot.seeding import generator

Float = NDArray[np.float64]


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
