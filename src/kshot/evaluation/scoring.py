"""Answers of a learner to the queries of frozen episodes.

Shapes: E episodes, B episodes scored together, N way, Q queries per class, D features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import FeatureWise, Learner, episodes_at_once
from kshot.backbones.contract import Backbone, items_at_once
from kshot.data.class_table import Int
from kshot.data.gather import Gather
from kshot.episodes.loader import load_episodes
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.features import KeptItems, on_kept_features
from kshot.runtime.lines import LiveLines, silent_lines
from kshot.settings import STRICT

Float = NDArray[np.float64]

_EPISODES_AT_ONCE = 64  # scored together from features, within this many numbers
_NUMBERS_AT_ONCE = 8_000_000
_SCORING_BYTES = 2**30  # of the largest activations of the episodes that are taken together


@settings(frozen=True, kw_only=True, config=STRICT)
class EvaluationSettings:
    worst_classes: Annotated[int, Field(ge=1)] = 10  # listed in the report


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


@torch.no_grad()
def score_episodes(
    learner: Learner[Any],
    indices: EpisodeIndices,
    gather: Gather,
    *,
    temperature: float = 1.0,
    lines: LiveLines | None = None,
) -> EpisodeScores:
    """`classify(adapt(support), query)` on every episode, with progress reported on `lines`."""
    per_class = indices.query.shape
    flat = (per_class[0], per_class[1] * per_class[2])
    # made before the loop: small arrays among large ones that come and go would split the memory that a process keeps
    predicted, confidence, tempered = np.empty(flat, np.int64), np.empty(flat), np.empty(flat)
    start = 0
    for logits in episode_logits(learner, indices, gather, lines or silent_lines()):
        part = slice(start, start := start + len(logits))
        predicted[part] = logits.argmax(2).cpu()
        confidence[part] = logits.softmax(2).amax(2).cpu()
        tempered[part] = (logits / temperature).softmax(2).amax(2).cpu()
    return EpisodeScores(
        predicted=predicted.reshape(per_class),
        class_ids=indices.class_ids,
        confidence=confidence.reshape(per_class),
        tempered=tempered.reshape(per_class),
    )


def embedded_once(learner: Learner[Any], gather: Gather) -> tuple[Learner[Any], Gather]:
    """The learner and the gather for scoring several lists of episodes of the same items.

    A learner that sees items one by one is put on features, and an item embedded when it is first asked for; others
    stay as they are. A gather that keeps features does so where nothing of the backbone, or of it below an adapter, is
    trained.
    """
    learner, gather = on_kept_features(learner, gather)
    if not isinstance(learner, FeatureWise):
        return learner, gather
    return learner.on_features(), _features(learner.backbone, gather)


def embedded_features(learner: Learner[Any], gather: Gather) -> Gather:
    """Item indices (...) -> features (..., D) of the learner's backbone, each item embedded alone, once."""
    learner, gather = on_kept_features(learner, gather)
    return _features(learner.backbone, gather)


def _features(backbone: nn.Module, gather: Gather) -> Gather:
    if isinstance(gather, KeptItems) and isinstance(backbone, Backbone):
        kept = gather.features_of(backbone)
        if kept is not None:
            return kept
    return _Features(backbone, gather)


def all_embedded_once(learners: Mapping[str, Learner[Any]], gather: Gather) -> dict[str, tuple[Learner[Any], Gather]]:
    """The same for several learners by name. Those that share a backbone share the features of each item."""
    of_backbone: dict[nn.Module, Gather] = {}
    found = {}
    for name, learner in learners.items():
        on_items, items = embedded_once(learner, gather)
        found[name] = on_items, of_backbone.setdefault(learner.backbone, items) if on_items is not learner else items
    return found


class _Features:
    """Item indices (...) -> features (..., D); each item goes through the backbone once, alone."""

    def __init__(self, backbone: nn.Module, gather: Gather) -> None:
        self._backbone, self._at_once, self._gather = backbone, items_at_once(backbone), gather
        self._row_of_item = np.full(0, -1)
        self._n_known = 0
        self._features: Tensor | None = None  # (at least n_known, D); it doubles, so that memory is seldom asked for

    @torch.no_grad()
    def __call__(self, items: Int) -> Tensor:
        n_more = int(items.max(initial=-1)) + 1 - len(self._row_of_item)
        self._row_of_item = np.pad(self._row_of_item, (0, max(n_more, 0)), constant_values=-1)
        new = np.unique(items[self._row_of_item[items] < 0])
        for chunk in self._chunks(new):
            self._keep(chunk, self._backbone(self._gather(chunk), None))
        assert self._features is not None
        return self._features[torch.from_numpy(self._row_of_item[items])]

    def _keep(self, items: Int, features: Tensor) -> None:
        rows = range(self._n_known, self._n_known + len(items))
        if self._features is None or len(self._features) < rows.stop:
            grown = features.new_empty(2 * rows.stop, features.shape[1])
            if self._features is not None:
                grown[: rows.start] = self._features[: rows.start]
            self._features = grown
        self._features[rows.start : rows.stop] = features
        self._row_of_item[items], self._n_known = rows, rows.stop

    def _chunks(self, items: Int) -> list[Int]:
        return [items[start : start + self._at_once] for start in range(0, len(items), self._at_once)]


def episode_logits(
    learner: Learner[Any], indices: EpisodeIndices, gather: Gather, lines: LiveLines
) -> Iterator[Tensor]:
    """Logits (B, N * Q, N), one batch of episodes at a time.

    A learner that sees items one by one has each embedded once, and episodes are gathers.
    """
    items_per_episode = indices.support[0].size + indices.query[0].size
    by_features = isinstance(learner, FeatureWise)
    learner, gather = embedded_once(learner, gather)
    if by_features:
        per_episode = gather(indices.support[:1, :1, :1]).numel() * items_per_episode
        at_once = min(max(1, _NUMBERS_AT_ONCE // per_episode), _EPISODES_AT_ONCE)
    else:
        at_once = episodes_at_once(learner, items_per_episode, _SCORING_BYTES)
    for start in range(0, len(indices), at_once):
        episodes = load_episodes(indices[start : start + at_once], gather)
        yield learner.classify(learner.adapt(episodes.support), episodes.query_x)
        lines.log_sparingly(partial("{:,} of {:,} episodes scored".format, start + len(episodes), len(indices)))
