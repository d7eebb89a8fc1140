"""What a model's answers look like where nothing is wrong: a sample of queries of meta_val, kept with the version.

Shapes: E episodes, R rows, D features, N way.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kshot.algorithms.answering import NON_TRANSDUCTIVE, served
from kshot.algorithms.learner import Learner
from kshot.algorithms.unknown import BASELINE, known_score
from kshot.data.gather import Gather
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.scoring import embedded_features, episode_logits
from kshot.model import SavedModel
from kshot.runtime.lines import silent_lines

REFERENCE = "reference.parquet"
_MOST_EPISODES = 50
_PER_EPISODE = 20  # queries, spread over the classes


@torch.no_grad()
def write_reference(path: Path, saved: SavedModel, indices: EpisodeIndices, gather: Gather) -> None:
    """A row per query: features (D,) float32, probability of the class it was taken for, and the score `known`."""
    reference_of(saved, indices, gather).to_parquet(path, index=False)


def reference_of(saved: SavedModel, indices: EpisodeIndices, gather: Gather) -> pd.DataFrame:
    learner: Learner[Any] = served(saved.learner)
    indices = _thinned(indices[:_MOST_EPISODES])
    temperature = saved.temperatures.get(NON_TRANSDUCTIVE, 1.0)
    score = BASELINE if saved.unknown is None else saved.unknown.score
    features = embedded_features(learner, gather)
    rows: dict[str, list[Any]] = {"features": [], "probability": [], "known": []}
    start = 0
    for logits in episode_logits(learner, indices, gather, silent_lines()):
        part = slice(start, start := start + len(logits))
        support, query = (features(items[part]).flatten(1, 2) for items in (indices.support, indices.query))
        scaled = logits / temperature
        rows["features"].extend(query.flatten(0, 1).float().cpu().numpy())
        rows["probability"].extend(scaled.softmax(2).amax(2).flatten().tolist())
        rows["known"].extend(known_score(score, scaled, support, query).flatten().tolist())
    return pd.DataFrame(rows)


def _thinned(indices: EpisodeIndices) -> EpisodeIndices:
    """The same episodes with few queries of each class."""
    per_class = max(1, _PER_EPISODE // indices.query.shape[1])
    return EpisodeIndices(
        support=indices.support,
        query=np.asarray(indices.query)[:, :, :per_class],
        class_ids=indices.class_ids,
        keys=indices.keys,
    )
