"""How often a learner confuses each class of its training, in episodes of that class among others.

Shapes: E episodes, N way.
"""

from collections import Counter
from typing import Any

from kshot.algorithms.answering import served
from kshot.algorithms.learner import Learner
from kshot.data.difficulty import Difficulty
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import Uniform
from kshot.errors import EpisodeError
from kshot.evaluation.scoring import embedded_once, score_episodes

_TIMES_EACH = 20  # that a class is in an episode, on average


def measured_difficulty(
    learner: Learner[Any], dataset: PackedDataset, shape: EpisodeShape, gather: Gather, *, seed: int, weights: str
) -> Difficulty:
    """Score episodes of the meta_train classes, as many queries as their items allow up to those of `shape`.

    `weights` is the SHA-256 of the learner's weights. Raises EpisodeError where a class has too few items.
    """
    table = dataset.class_table("meta_train")
    n_query = min(shape.n_query, table.smallest_class - shape.k_shot)
    if n_query < 1:
        raise EpisodeError(
            f"the smallest class of meta_train has {table.smallest_class} items; {shape} and a query needs "
            f"{shape.k_shot + 1}; next: a first setting of fewer shots in task_pool.meta_test.settings"
        )
    shape = EpisodeShape(n_way=min(shape.n_way, len(table.class_ids)), k_shot=shape.k_shot, n_query=n_query)
    n_episodes = -(-_TIMES_EACH * len(table.class_ids) // shape.n_way)
    pool = SampledPool.of_split(table, shape, Uniform(), seed=seed, split="difficulty")
    on_items, items = embedded_once(served(learner), gather)
    scores = score_episodes(on_items, pool.freeze(n_episodes).indices, items)
    queries, errors = Counter[str](), Counter[str]()
    for number, correct in zip(scores.class_ids.ravel().tolist(), scores.correct.ravel().tolist(), strict=True):
        name = dataset.classes[number]
        queries[name] += n_query
        errors[name] += n_query - correct
    return Difficulty(
        dataset=dataset.name,
        data_hash=dataset.content_hash,
        weights_sha256=weights,
        episodes=f"{n_episodes} episodes {shape}",
        queries=dict(sorted(queries.items())),
        errors=dict(sorted(errors.items())),
    )
