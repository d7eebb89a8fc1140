"""The results of an evaluation, and the tables that they are written as."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.data.packed import PackedDataset
from kshot.episodes.sampling import EpisodeIndices, EpisodeKind
from kshot.evaluation.calibration import Bins, calibration_bins
from kshot.evaluation.per_class import class_accuracy, confusions
from kshot.evaluation.scoring import EpisodeScores


@dataclass(frozen=True, kw_only=True)
class SettingScores:
    """One setting, such as 5w1s, in one normalisation mode.

    `baselines` by name, on the same episodes.
    """

    name: str
    kind: EpisodeKind
    mode: str
    pool_hash: str
    indices: EpisodeIndices
    temperature: float
    scores: EpisodeScores
    baselines: dict[str, EpisodeScores]

    @property
    def is_served(self) -> bool:
        return self.mode == NON_TRANSDUCTIVE

    def bins(self, *, tempered: bool) -> Bins:
        """Confidence against accuracy, of the logits as they are or as served, with the temperature of meta_val."""
        confidence = self.scores.tempered if tempered else self.scores.confidence
        return calibration_bins(confidence, self.scores.right)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` as in metrics.json, `classes` as in per_class.parquet."""

    settings: list[SettingScores]
    metrics: dict[str, Any]
    classes: pd.DataFrame

    @property
    def headline(self) -> SettingScores:
        """The first setting in the mode that is served."""
        return next(setting for setting in self.settings if setting.is_served)


def episode_table(settings: list[SettingScores]) -> pd.DataFrame:
    """One row per episode; a column for each baseline."""
    return pd.concat(
        pd.DataFrame(
            {
                "setting": setting.name,
                "mode": setting.mode,
                "episode": np.arange(len(setting.scores.accuracy)),
                "accuracy": setting.scores.accuracy,
            }
            | {name: scores.accuracy for name, scores in setting.baselines.items()}
        )
        for setting in settings
    )


def class_table(settings: list[SettingScores], dataset: PackedDataset) -> pd.DataFrame:
    """One row per class and setting: queries asked and the fraction answered right."""
    tables = []
    for setting in settings:
        classes, asked, accuracy = class_accuracy(setting.scores)
        tables.append(
            pd.DataFrame(
                {
                    "setting": setting.name,
                    "mode": setting.mode,
                    "class": [dataset.classes[c] for c in classes],
                    "group": [dataset.group_names[dataset.class_groups[c]] for c in classes],
                    "queries": asked,
                    "accuracy": accuracy,
                }
            )
        )
    return pd.concat(tables)


def confusion_table(setting: SettingScores, dataset: PackedDataset) -> pd.DataFrame:
    """One row for each pair of classes that were taken for one another, the worst first."""
    pairs = confusions(setting.scores)
    return pd.DataFrame(
        {
            "setting": setting.name,
            "class": [dataset.classes[c] for c in pairs.true],
            "taken_for": [dataset.classes[c] for c in pairs.predicted],
            "times": pairs.times,
            "queries": pairs.asked,
        }
    )
