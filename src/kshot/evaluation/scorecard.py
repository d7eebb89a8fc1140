"""What the evaluate stage wrote about a model, as the promotion gate reads it.

Shapes: E episodes of a setting.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.data.packed import PackedDataset
from kshot.errors import StageError
from kshot.evaluation.intervals import Interval

METRICS, EPISODES, CLASSES = "metrics.json", "episodes.parquet", "per_class.parquet"
PRETRAINED = "pretrained"
"""In metrics.json: the lead over the best head on the pretrained backbone; not there where none was scored."""
ALTERNATIVES = "alternatives"
"""In that: the heads, where the model is one itself and need not beat the others."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far a model is ahead of the best head on the pretrained backbone over all settings, episode by episode.

    `is_head`: the model is a head as well, to which the others are alternatives.
    """

    over: str
    difference: Interval
    is_head: bool = False

    @property
    def is_behind(self) -> bool:
        """Whether the 95% interval leaves a doubt: a model has to be ahead, and a head not behind the others."""
        mean, half_width = self.difference.mean, self.difference.half_width
        return mean + half_width < 0 if self.is_head else mean - half_width <= 0

    def words(self, model: str) -> str:
        """One sentence on `model`, without a full stop."""
        mean, half_width = self.difference.mean, self.difference.half_width
        points = f"{100 * abs(mean):.2f} ± {100 * half_width:.2f} points over all settings, episode by episode"
        if mean - half_width > 0:
            return f"{model} is ahead of {self._best} by {points}"
        if mean + half_width < 0:
            return f"{self._best} is ahead of {model} by {points}"
        return f"between {model} and {self._best} there is no difference: {'-' if mean < 0 else ''}{points}"

    @property
    def _best(self) -> str:
        other = "other " if self.is_head else ""
        return f"the best {other}head on the pretrained backbone ({self.over})"


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """What evaluation found out about one model, in the mode that is served.

    `accuracy` holds the fraction right in each episode (E,) by setting; `episodes` names those episodes
    and the images behind them; `baselines` has the mean accuracy by setting of each baseline that has to be beaten, and
    `pretrained` is the lead over the best head on the pretrained backbone. `algorithm` is a text of its settings: two
    models may answer by other means on the same weights.
    """

    weights_sha256: str
    episodes: str
    accuracy: Mapping[str, NDArray[np.float64]]
    group_accuracy: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    algorithm: str = ""
    pretrained: Lead | None = None
    calibration_error: float | None = None
    adapt_ms: float | None = None
    classify_ms: float | None = None


def episodes_id(dataset: PackedDataset, pool_hashes: Mapping[str, str]) -> str:
    """SHA-256 that names the held-out episodes: their pools, and the images that the item numbers stand for.

    Two datasets of one size have the same pools, and new training classes leave the held-out ones alone.
    """
    rotations, manifest = dataset.info.rotations, dataset.manifest.to_pandas()
    held_out = manifest[manifest["class"].isin(dataset.splits.of("meta_test"))]
    identity = {
        "pools": dict(pool_hashes),
        "rotations": [rotations, dataset.n_stored] if len(rotations) > 1 else [],  # they number the items
        "numbers": held_out.index.tolist(),
        "classes": held_out["class"].tolist(),
        "pixels": held_out["sha256"].tolist(),
    }
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_scorecard(
    folder: Path,
    weights_sha256: str,
    *,
    algorithm: str = "",
    adapt_ms: float | None = None,
    classify_ms: float | None = None,
) -> Scorecard:
    """The scores in the mode that is served, from an evaluation's files. Raises StageError where there are none."""
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    served = {_setting(result): result for result in metrics["results"] if result["mode"] == NON_TRANSDUCTIVE}
    if not served:
        raise StageError(f"{folder / METRICS} has no {NON_TRANSDUCTIVE} result; need one; next: kshot evaluate")
    episodes = _served(pd.read_parquet(folder / EPISODES))
    by_setting = {str(setting): rows.sort_values("episode") for setting, rows in episodes.groupby("setting")}
    alternatives = metrics.get(PRETRAINED, {}).get(ALTERNATIVES, [])
    names = dict.fromkeys(name for result in served.values() for name in result["baselines"])
    return Scorecard(
        weights_sha256=weights_sha256,
        episodes=metrics.get("episodes_id", "unknown"),  # that no other has, where kshot was older
        accuracy={setting: rows["accuracy"].to_numpy() for setting, rows in by_setting.items()},
        group_accuracy=_accuracies(folder, by="group"),
        baselines={
            name: {setting: result["baselines"][name]["accuracy"] for setting, result in served.items()}
            for name in names
            if name not in alternatives
        },
        algorithm=algorithm,
        pretrained=lead_in(metrics),
        calibration_error=max(_calibration_error(result) for result in served.values()),
        adapt_ms=adapt_ms,
        classify_ms=classify_ms,
    )


def lead_in(metrics: Mapping[str, Any]) -> Lead | None:
    """The lead that metrics.json tells of; None where no head on a pretrained backbone was scored."""
    found = metrics.get(PRETRAINED)
    if found is None:
        return None
    return Lead(
        over=found["best"],
        difference=Interval(mean=found["difference"], half_width=found["ci95"]),
        is_head=ALTERNATIVES in found,
    )


def class_accuracies(folder: Path) -> dict[str, float]:
    """Fraction right of each held-out class over all settings in the mode that is served."""
    return _accuracies(folder, by="class")


def _accuracies(folder: Path, *, by: str) -> dict[str, float]:
    rows = _served(pd.read_parquet(folder / CLASSES))
    right = (rows["accuracy"] * rows["queries"]).groupby(rows[by]).sum()
    accuracies = right / rows["queries"].groupby(rows[by]).sum()
    return {str(name): float(accuracy) for name, accuracy in accuracies.items()}


def _served(table: pd.DataFrame) -> pd.DataFrame:
    served = table[table["mode"] == NON_TRANSDUCTIVE]
    return served if "setting" in served else served.assign(setting=served.apply(_setting, axis=1))


def _calibration_error(result: Mapping[str, Any]) -> float:
    """Of the probabilities that are served; of the logits as they are in an evaluation that knew no temperature."""
    return float(result.get("tempered_calibration_error", result["calibration_error"]))


def _setting(row: Mapping[str, Any]) -> str:
    """Name of the setting; that of a version from before settings had names."""
    return str(row["setting"]) if "setting" in row else f"{row['n_way']}w{row['k_shot']}s"
