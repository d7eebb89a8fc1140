"""How well a model tells items of none of the classes: episodes in which half of the queries come from outside.

The queries of the next episode of a pool are asked in each episode too; those of a class that both have are left out.

Shapes: E episodes, B of them taken together, N way, Q queries per class, S support items, D features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.algorithms.answering import served
from kshot.algorithms.learner import FeatureWise, Learner
from kshot.algorithms.unknown import BASELINE, SCORES, ScoreName, UnknownRule, known_score
from kshot.data.gather import Gather
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.scoring import embedded_features, episode_logits
from kshot.runtime.lines import silent_lines
from kshot.seeding import generator

Float = NDArray[np.float64]

RECALL = 0.95
_MOST_EPISODES = 200  # that are taken of a pool
_MOST_ON_ITEMS = 50  # by a learner that may take seconds for one
_RESAMPLED = 200


@dataclass(frozen=True, kw_only=True)
class OpenScores:
    """A score of the queries of E episodes: of known classes (E, N * Q), and of others, NaN where they are left out."""

    known: Float
    unknown: Float

    def of(self, episodes: NDArray[np.int64]) -> "OpenScores":
        return OpenScores(known=self.known[episodes], unknown=self.unknown[episodes])

    @property
    def auroc(self) -> float:
        """The chance that an item of a known class has a higher score than one of none; 0.5 says nothing."""
        from scipy.stats import rankdata

        known, unknown = self.known.ravel(), self._others
        ranks = rankdata(np.concatenate([known, unknown]))[: len(known)]
        return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))

    @property
    def false_positive_rate(self) -> float:
        """The fraction of items of no class that pass where `RECALL` of the others do."""
        return self.passed(self.threshold)[1]

    @property
    def threshold(self) -> float:
        """What `RECALL` of the items of known classes reach."""
        return float(np.quantile(self.known, 1 - RECALL))

    def passed(self, threshold: float) -> tuple[float, float]:
        """The fractions of known and of other items that reach a threshold."""
        return float((self.known >= threshold).mean()), float((self._others >= threshold).mean())

    @property
    def is_closed(self) -> bool:
        """Whether there is no item of no class."""
        return bool(np.isnan(self.unknown).all())

    @property
    def _others(self) -> Float:
        others: Float = self.unknown[~np.isnan(self.unknown)]
        return others


@torch.no_grad()
def score_open_episodes(
    learner: Learner[Any], indices: EpisodeIndices, gather: Gather, names: Sequence[ScoreName], *, temperature: float
) -> dict[ScoreName, OpenScores]:
    """Each of the scores `names` on the first episodes, as the learner is served."""
    learner = served(learner)
    indices = indices[: _MOST_EPISODES if isinstance(learner, FeatureWise) else _MOST_ON_ITEMS]
    n_episodes, n_way, n_query = indices.query.shape
    following = np.roll(np.arange(n_episodes), -1)
    both = EpisodeIndices(
        support=indices.support,
        query=np.concatenate([indices.query, indices.query[following]], axis=2),
        class_ids=indices.class_ids,
        keys=indices.keys,
    )
    features = embedded_features(learner, gather)
    if isinstance(learner, FeatureWise):
        learner, gather = learner.on_features(), features
    scores: dict[ScoreName, list[Float]] = {name: [] for name in names}
    start = 0
    for logits in episode_logits(learner, both, gather, silent_lines()):
        part = slice(start, start := start + len(logits))
        support, query = (features(items[part]).flatten(1, 2) for items in (both.support, both.query))
        for name in names:
            scores[name].append(known_score(name, logits / temperature, support, query).double().cpu().numpy())
    shared = (indices.class_ids[following][:, :, None] == indices.class_ids[:, None, :]).any(2)  # (E, N)
    found = {}
    for name, parts in scores.items():
        rows = np.concatenate(parts).reshape(n_episodes, n_way, 2 * n_query)
        unknown = np.where(shared[:, :, None], np.nan, rows[:, :, n_query:])
        found[name] = OpenScores(
            known=rows[:, :, :n_query].reshape(n_episodes, -1), unknown=unknown.reshape(n_episodes, -1)
        )
    return found


def fit_unknown_rule(
    learner: Learner[Any], indices: EpisodeIndices, gather: Gather, *, temperature: float
) -> UnknownRule | None:
    """The score that tells best on these episodes, with the thresholds that keep `RECALL` of what is known.

    For more shots than the episodes have, queries become support, as long as half of them are left. None where
    episodes have all classes in common, so that there is no other item.
    """
    by_shots = {
        shots: score_open_episodes(learner, with_shots, gather, SCORES, temperature=temperature)
        for shots, with_shots in _with_more_shots(indices)
    }
    if any(found.is_closed for scores in by_shots.values() for found in scores.values()):
        return None
    best = max(SCORES, key=lambda name: sum(scores[name].auroc for scores in by_shots.values()))
    thresholds = tuple((shots, scores[best].threshold) for shots, scores in by_shots.items())
    return UnknownRule(score=best, thresholds=thresholds, recall=RECALL)


def _with_more_shots(indices: EpisodeIndices) -> Iterator[tuple[int, EpisodeIndices]]:
    k_shot, n_query = indices.support.shape[2], indices.query.shape[2]
    items = np.concatenate([indices.support, indices.query], axis=2)
    shots = k_shot
    while shots == k_shot or 2 * (shots - k_shot) <= n_query:
        support, query = items[:, :, :shots], items[:, :, shots:]
        yield shots, EpisodeIndices(support=support, query=query, class_ids=indices.class_ids, keys=indices.keys)
        shots *= 2


def unknown_metrics(
    learner: Learner[Any], rule: UnknownRule, indices: EpisodeIndices, gather: Gather, *, temperature: float, seed: int
) -> dict[str, Any]:
    """How well the rule tells on these episodes, beside the probability of the likeliest class.

    `recall` and `false_positive_rate` are those of the rule with the threshold that it has. {} without other items.
    """
    names: tuple[ScoreName, ...] = (rule.score, BASELINE)
    found = score_open_episodes(learner, indices, gather, names, temperature=temperature)
    if found[rule.score].is_closed:
        return {}
    threshold = rule.threshold(indices.support.shape[2])
    recall, false_positives = found[rule.score].passed(threshold)
    return {
        "score": rule.score,
        "threshold": threshold,
        "episodes": len(found[rule.score].known),
        "recall": recall,
        "false_positive_rate": false_positives,
        **_with_intervals(found[rule.score], seed),
        "baseline": {"score": BASELINE, **_with_intervals(found[BASELINE], seed)},
    }


def _with_intervals(scores: OpenScores, seed: int) -> dict[str, float]:
    """Both measures, with half of their 95% bootstrap intervals over episodes."""
    draws = generator(seed, "unknown", "bootstrap").integers(len(scores.known), size=(_RESAMPLED, len(scores.known)))
    resampled = [scores.of(draw) for draw in draws]
    low, high = np.quantile([(one.auroc, one.false_positive_rate) for one in resampled], [0.025, 0.975], axis=0)
    auroc_ci95, rate_ci95 = ((high - low) / 2).tolist()
    return {
        "auroc": scores.auroc,
        "auroc_ci95": auroc_ci95,
        "false_positive_rate_at_recall": scores.false_positive_rate,
        "false_positive_rate_at_recall_ci95": rate_ci95,
    }
