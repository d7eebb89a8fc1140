"""A model scored on every configured setting, beside the baselines on the very same episodes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kshot.algorithms.answering import NON_TRANSDUCTIVE, normalization_modes, served
from kshot.algorithms.learner import Learner, Stepwise
from kshot.backbones.layers.adapter import NoAdapter
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import FrozenPools
from kshot.evaluation.calibration import fit_temperatures
from kshot.evaluation.features import is_head
from kshot.evaluation.intervals import mean_interval, paired_difference
from kshot.evaluation.per_class import class_interval
from kshot.evaluation.scorecard import ALTERNATIVES, CLASSES, EPISODES, METRICS, PRETRAINED, episodes_id
from kshot.evaluation.scoring import all_embedded_once, score_episodes
from kshot.evaluation.seen_classes import on_seen_and_unseen_classes
from kshot.evaluation.tables import Evaluation, SettingScores, class_table, confusion_table, episode_table
from kshot.evaluation.unknown import unknown_metrics
from kshot.model import SavedModel
from kshot.runtime.files import json_bytes
from kshot.runtime.lines import LiveLines

CONFUSIONS = "confusions.parquet"
_FEW_EPISODES = 200  # at most, of the first setting: for the curve over inner steps, and on the classes of training


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The frozen episodes that a model is scored on, and the images behind them.

    `seed` is that of the run; it is written down, and draws the intervals over classes.
    """

    dataset: PackedDataset
    frozen: FrozenPools
    seed: int


def score_model(
    grid: Grid,
    saved: SavedModel,
    gather: Gather,
    *,
    baselines: Mapping[str, Learner[Any]],
    pretrained: Mapping[str, Learner[Any]] | None = None,
    lines: LiveLines,
) -> Evaluation:
    """Every setting in every normalisation mode of the learner. All learners lie where `gather` puts items.

    `pretrained` are baselines too; the model is held against the best of them over all settings. To a model that is a
    head itself they are alternatives, which it need not beat.
    """
    heads = pretrained or {}
    alternatives = list(heads) if is_head(saved.learner) else []
    settings = list(_score_settings(grid, saved, gather, {**baselines, **heads}, lines))
    metrics = _summary(grid, saved) | {
        "results": [
            _result(setting, seed=grid.seed, alternatives=alternatives) | saved.config.beside_mode
            for setting in settings
        ],
        "episodes_id": episodes_id(grid.dataset, {setting.name: setting.pool_hash for setting in settings}),
    }
    if heads:
        against = _against_the_best(heads, [setting for setting in settings if setting.is_served])
        metrics[PRETRAINED] = against | ({ALTERNATIVES: alternatives} if alternatives else {})
    return Evaluation(settings=settings, metrics=metrics, classes=class_table(settings, grid.dataset))


def score_extras(
    grid: Grid, saved: SavedModel, setting: SettingScores, gather: Gather, *, seed: int, held_in: bool
) -> dict[str, list[dict[str, Any]]]:
    """Scores with sections of their own: over inner steps, on the classes of training, and on items of no class.

    Without `held_in` there is none of the second, for a training that did not use the labels.
    """
    return {
        "adaptation": list(_adaptation(saved.learner, setting, gather)),
        "held_in": list(_held_in(grid, saved.learner, setting, gather, seed)) if held_in else [],
        "unknown": list(_unknown(grid, saved, gather)),
    }


def write_scores(folder: Path, found: Evaluation, dataset: PackedDataset) -> None:
    """Write metrics.json and three tables (episodes, per_class, confusions)."""
    (folder / METRICS).write_bytes(json_bytes(found.metrics))
    episode_table(found.settings).to_parquet(folder / EPISODES, index=False)
    found.classes.to_parquet(folder / CLASSES, index=False)
    served = [confusion_table(setting, dataset) for setting in found.settings if setting.is_served]
    pd.concat(served).to_parquet(folder / CONFUSIONS, index=False)


def _score_settings(
    grid: Grid,
    saved: SavedModel,
    gather: Gather,
    baselines: Mapping[str, Learner[Any]],
    lines: LiveLines,
) -> Iterator[SettingScores]:
    modes = normalization_modes(saved.learner)
    temperatures = saved.temperatures or fit_temperatures(saved.learner, grid.frozen.val.indices, gather)
    scored = all_embedded_once(modes, gather)
    compared = all_embedded_once(baselines, gather)
    for name, kind in grid.frozen.kinds.items():
        pool = grid.frozen.test[name]
        beside = {name: score_episodes(learner, pool.indices, items) for name, (learner, items) in compared.items()}
        for mode, (learner, items) in scored.items():
            scores = score_episodes(learner, pool.indices, items, temperature=temperatures[mode], lines=lines)
            others = "".join(f"; {name} {other.accuracy.mean():.2%}" for name, other in beside.items())
            lines.log(f"{kind} {mode}: {scores.accuracy.mean():.2%}{others}; {len(pool):,} episodes")
            yield SettingScores(
                name=name,
                kind=kind,
                mode=mode,
                pool_hash=pool.hash,
                indices=pool.indices,
                temperature=temperatures[mode],
                scores=scores,
                baselines=beside,
            )


def _summary(grid: Grid, saved: SavedModel) -> dict[str, Any]:
    shape, adapter = saved.config.train_shape, saved.config.adapter
    return {
        "dataset": grid.dataset.name,
        "algorithm": saved.config.algorithm.name,
        "backbone": saved.config.backbone.name,
        **({} if isinstance(adapter, NoAdapter) else {"adapter": adapter.name}),
        **({} if saved.config.test_time.changes_nothing else {"test_time": str(saved.config.test_time)}),
        **({} if saved.config.members == 1 else {"members": saved.config.members}),
        "seed": grid.seed,
        "train_shape": {"n_way": shape.n_way, "k_shot": shape.k_shot, "n_query": shape.n_query},
    }


def _result(setting: SettingScores, *, seed: int, alternatives: Sequence[str]) -> dict[str, Any]:
    model = mean_interval(setting.scores.accuracy)
    beside = {name: mean_interval(scores.accuracy) for name, scores in setting.baselines.items()}
    shape = setting.kind.shape
    return {
        "setting": setting.name,
        "title": str(setting.kind),
        "n_way": shape.n_way,
        "k_shot": shape.k_shot,
        "n_query": shape.n_query,
        "sampler": setting.kind.sampler.name,
        "episodes": len(setting.scores.accuracy),
        "mode": setting.mode,
        "accuracy": model.mean,
        "ci95": model.half_width,
        "ci95_over_classes": list(class_interval(setting.scores, seed=seed)),
        "calibration_error": setting.bins(tempered=False).expected_calibration_error,
        "temperature": setting.temperature,
        "tempered_calibration_error": setting.bins(tempered=True).expected_calibration_error,
        "baselines": {name: {"accuracy": i.mean, "ci95": i.half_width} for name, i in beside.items()},
        "unbeaten": [name for name, i in beside.items() if name not in alternatives and model.mean <= i.mean],
        "pool_hash": setting.pool_hash,
    }


def _against_the_best(names: Iterable[str], settings: list[SettingScores]) -> dict[str, Any]:
    """The model against the baseline with the best mean over the settings, by the paired difference of episodes."""

    def mean(name: str) -> float:
        return float(np.mean([setting.baselines[name].accuracy.mean() for setting in settings]))

    best = max(names, key=mean)
    difference = paired_difference(
        {setting.name: setting.scores.accuracy for setting in settings},
        {setting.name: setting.baselines[best].accuracy for setting in settings},
    )
    return {"best": best, "difference": difference.mean, "ci95": difference.half_width}


def _held_in(
    grid: Grid, learner: Learner[Any], setting: SettingScores, gather: Gather, seed: int
) -> Iterator[dict[str, Any]]:
    """Accuracy on the classes of training and on held-out ones, in the mode that is served."""
    in_use = served(learner)
    shape = setting.kind.shape
    n_episodes = min(_FEW_EPISODES, len(setting.indices))  # whoever asked for fewer has a learner that takes long
    rows = on_seen_and_unseen_classes(in_use, grid.dataset, shape, gather, seed=seed, n_episodes=n_episodes)
    for name, accuracy in rows:
        yield {"queries": name, "accuracy": accuracy.mean, "ci95": accuracy.half_width}


def _adaptation(learner: Learner[Any], setting: SettingScores, gather: Gather) -> Iterator[dict[str, Any]]:
    """Accuracy after 0 steps and more, on the first episodes of a setting; nothing for a learner without steps."""
    if not isinstance(learner, Stepwise):
        return
    indices = setting.indices[:_FEW_EPISODES]
    after = {n: normalization_modes(learner.with_inner_steps(n)) for n in curve_steps(learner.inner_steps)}
    for mode in normalization_modes(learner):
        in_mode = all_embedded_once({str(n_steps): modes[mode] for n_steps, modes in after.items()}, gather)
        for n_steps, (on_items, items) in zip(after, in_mode.values(), strict=True):
            found = mean_interval(score_episodes(on_items, indices, items).accuracy)
            yield {"mode": mode, "steps": n_steps, "accuracy": found.mean, "ci95": found.half_width}


def _unknown(grid: Grid, saved: SavedModel, gather: Gather) -> Iterator[dict[str, Any]]:
    """How well items of no class are told in each setting; nothing for a model that has no rule for them."""
    if saved.unknown is None:
        return
    temperature = saved.temperatures[NON_TRANSDUCTIVE]
    for name, kind in grid.frozen.kinds.items():
        indices = grid.frozen.test[name].indices
        found = unknown_metrics(saved.learner, saved.unknown, indices, gather, temperature=temperature, seed=grid.seed)
        if found:
            yield {"setting": name, "title": str(kind), **found}


def curve_steps(inner_steps: int) -> list[int]:
    """A handful of numbers of steps from 0 to `inner_steps`, close together at the start, where most changes."""
    return sorted({0, 1, 2, inner_steps // 4, inner_steps // 2, inner_steps} & set(range(inner_steps + 1)))
