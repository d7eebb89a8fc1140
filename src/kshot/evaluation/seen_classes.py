"""Classes that training saw beside classes that it did not: each alone, and both in one label space.

Shapes: E episodes, N way.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kshot.algorithms.learner import Learner
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import EpisodeIndices, Uniform
from kshot.evaluation.intervals import Interval, mean_interval
from kshot.evaluation.scoring import score_episodes
from kshot.seeding import stream_key, uniform

_STREAM = "held_in"


def on_seen_and_unseen_classes(
    learner: Learner[Any], dataset: PackedDataset, shape: EpisodeShape, gather: Gather, *, seed: int, n_episodes: int
) -> Iterator[tuple[str, Interval]]:
    """Accuracy on meta_train classes, on meta_test classes, and in episodes with half of each.

    The generalised setting of Chao et al., "An Empirical Study and Analysis of Generalized Zero-Shot Learning
    for Object Recognition in the Wild", 2016, in episodes. The images of the meta_train classes are those of
    training. Yields nothing if a class has too few images for an episode.
    """
    tables = [dataset.class_table(split) for split in ("meta_train", "meta_test")]
    n_query = min(shape.n_query, *(table.smallest_class - shape.k_shot for table in tables))
    if n_query < 1 or any(len(table.class_ids) < shape.n_way for table in tables):
        return
    shape = EpisodeShape(n_way=shape.n_way, k_shot=shape.k_shot, n_query=n_query)
    numbers = range(n_episodes)
    held_in, held_out = (
        SampledPool.of_split(table, shape, Uniform(), seed=seed, split=_STREAM).episodes(numbers) for table in tables
    )
    both = mixed(held_in, held_out, stream_key(seed, _STREAM, "order"))
    yield "held-in classes alone", mean_interval(score_episodes(learner, held_in, gather).accuracy)
    yield "held-out classes alone", mean_interval(score_episodes(learner, held_out, gather).accuracy)
    right = score_episodes(learner, both, gather).right.mean(axis=2)  # (E, N)
    is_held_in = np.isin(both.class_ids, tables[0].class_ids)
    yield "both in one label space", mean_interval(right.mean(axis=1))
    yield "of these, queries of held-in classes", mean_interval(np.average(right, axis=1, weights=is_held_in))
    yield "of these, queries of held-out classes", mean_interval(np.average(right, axis=1, weights=~is_held_in))


def mixed(first: EpisodeIndices, second: EpisodeIndices, key: np.uint64) -> EpisodeIndices:
    """Episodes of N//2 classes of `first` and the others of `second`, in an order drawn by `key`."""
    n_episodes, n_way = first.class_ids.shape
    order = np.argsort(uniform(key, np.arange(n_episodes)[:, None], np.arange(n_way)), axis=1)

    def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        joined = np.concatenate([a[:, : n_way // 2], b[:, n_way // 2 :]], axis=1)
        return np.take_along_axis(joined, order.reshape(n_episodes, n_way, *[1] * (a.ndim - 2)), axis=1)

    return EpisodeIndices(
        support=join(first.support, second.support),
        query=join(first.query, second.query),
        class_ids=join(first.class_ids, second.class_ids),
        keys=first.keys,
    )
