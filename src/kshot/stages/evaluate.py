"""Score the trained learner on the frozen meta_test episodes, beside the baselines on the very same ones."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from kshot.algorithms.learner import NON_TRANSDUCTIVE, Learner
from kshot.baselines import baselines
from kshot.calibration import fit_temperature
from kshot.config import Params
from kshot.data.gather import Gather, image_gather
from kshot.data.packed import PackedDataset
from kshot.distributed import choose_device
from kshot.evaluation import embedded_once, score_episodes
from kshot.evaluation_report import write_report
from kshot.evaluation_tables import Evaluation, SettingScores, class_table, confusion_table, episode_table
from kshot.held_in import held_in_and_held_out
from kshot.intervals import mean_interval
from kshot.live_lines import LiveLines
from kshot.model import SavedModel, load_model, load_other_seeds
from kshot.per_class import class_interval
from kshot.scorecard import CLASSES, EPISODES, METRICS, episodes_id
from kshot.stage_process import set_up_process
from kshot.stages.task_pool import load_pool, test_pool_name

_FEW_EPISODES = 200  # of the first setting: for the curve over inner steps, and on the classes of training


def run(params: Params, root: Path) -> None:
    """Write metrics.json, three tables (episodes, per_class, confusions), plots/, sections.html and report.html."""
    set_up_process(params.meta_train)
    dataset = PackedDataset.open(root / "data" / params.dataset.name)
    trained = root / "artifacts" / "meta_train"
    folder = root / "artifacts" / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    found = write_scores(
        params, root, dataset, load_model(trained / "model"), folder, load_other_seeds(trained / "seeds")
    )
    write_report(folder, found, dataset, trained, n_worst=params.evaluate.worst_classes)


def write_scores(
    params: Params,
    root: Path,
    dataset: PackedDataset,
    saved: SavedModel,
    folder: Path,
    other_seeds: Mapping[int, SavedModel] = MappingProxyType({}),
    *,
    beside: bool = True,
) -> Evaluation:
    """Score any model on the frozen episodes of `root`, and write the numbers into `folder`.

    `beside`: also what stands beside the settings, the curve over inner steps and the classes of training.
    """
    device = choose_device(params.meta_train.device)
    gather, learner = image_gather(dataset, device), saved.learner.to(device)
    lines = LiveLines(partial(print, flush=True))
    settings = list(_score_settings(params, root, dataset, saved, other_seeds, gather, lines))
    metrics = _summary(params, saved) | {
        "results": [_result(setting, seed=params.seed) for setting in settings],
        "adaptation": list(_adaptation(learner, settings[0], gather)) if beside else [],
        "held_in": list(_held_in(params, learner, settings[0], dataset, gather)) if beside else [],
        "episodes_id": episodes_id(dataset, {setting.name: setting.pool_hash for setting in settings}),
    }
    classes = class_table(settings, dataset)
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    episode_table(settings).to_parquet(folder / EPISODES, index=False)
    classes.to_parquet(folder / CLASSES, index=False)
    served = [confusion_table(setting, dataset) for setting in settings if setting.is_served]
    pd.concat(served).to_parquet(folder / "confusions.parquet", index=False)
    return Evaluation(settings=settings, metrics=metrics, classes=classes)


def _score_settings(
    params: Params,
    root: Path,
    dataset: PackedDataset,
    saved: SavedModel,
    other_seeds: Mapping[int, SavedModel],
    gather: Gather,
    lines: LiveLines,
) -> Iterator[SettingScores]:
    """Every configured setting, in every normalisation mode of the learner; the temperature is that of meta_val."""
    modes = saved.learner.normalization_modes()
    val_pool = load_pool(root, "meta_val", dataset)
    temperatures = {mode: fit_temperature(learner, val_pool.indices, gather) for mode, learner in modes.items()}
    others = baselines(
        saved.config, dataset, gather, seed=params.seed, pretrain_steps=params.evaluate.pretrain_steps, lines=lines
    )
    device = next(saved.learner.parameters()).device
    by_seed = {
        seed: {mode: embedded_once(it, gather) for mode, it in other.learner.to(device).normalization_modes().items()}
        for seed, other in other_seeds.items()
    }
    scored = {mode: embedded_once(learner, gather) for mode, learner in modes.items()}
    compared = {name: embedded_once(learner, gather) for name, learner in others.items()}
    for name, kind in params.task_pool.meta_test.kinds().items():
        pool = load_pool(root, test_pool_name(name), dataset)
        beside = {name: score_episodes(learner, pool.indices, items) for name, (learner, items) in compared.items()}
        for mode, (learner, items) in scored.items():
            scores = score_episodes(learner, pool.indices, items, temperature=temperatures[mode], lines=lines)
            lines.say(
                f"{kind} {mode}: {scores.accuracy.mean():.2%}; "
                + "; ".join(f"{name} {other.accuracy.mean():.2%}" for name, other in beside.items())
                + f"; {len(pool):,} episodes"
            )
            yield SettingScores(
                name=name,
                kind=kind,
                mode=mode,
                pool_hash=pool.hash,
                indices=pool.indices,
                temperature=temperatures[mode],
                scores=scores,
                baselines=beside,
                other_seeds={
                    seed: score_episodes(other, pool.indices, items)
                    for seed, (other, items) in ((seed, in_modes[mode]) for seed, in_modes in by_seed.items())
                },
            )


def _summary(params: Params, saved: SavedModel) -> dict[str, Any]:
    shape = saved.config.train_shape
    return {
        "dataset": params.dataset.name,
        "algorithm": saved.config.algorithm.name,
        "backbone": saved.config.backbone.name,
        "seed": params.seed,
        "train_shape": {"n_way": shape.n_way, "k_shot": shape.k_shot, "n_query": shape.n_query},
    }


def _result(setting: SettingScores, *, seed: int) -> dict[str, Any]:
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
        "over_seeds": _over_seeds(setting, seed),
        "unbeaten": [name for name, interval in beside.items() if model.mean <= interval.mean],
        "pool_hash": setting.pool_hash,
    }


def _over_seeds(setting: SettingScores, seed: int) -> dict[str, Any] | None:
    """Mean and standard deviation of the accuracy over trainings from several seeds; None where there is one."""
    if not setting.other_seeds:
        return None
    accuracies = {seed: setting.scores} | setting.other_seeds
    values = [float(scores.accuracy.mean()) for scores in accuracies.values()]
    return {"seeds": list(accuracies), "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


def _held_in(
    params: Params, learner: Learner[Any], setting: SettingScores, dataset: PackedDataset, gather: Gather
) -> Iterator[dict[str, Any]]:
    """Accuracy on the classes of training and on held-out ones, in the mode that is served."""
    served = learner.normalization_modes()[NON_TRANSDUCTIVE]
    rows = held_in_and_held_out(
        served, dataset, setting.kind.shape, gather, seed=params.task_pool.seed, n_episodes=_FEW_EPISODES
    )
    for name, accuracy in rows:
        yield {"queries": name, "accuracy": accuracy.mean, "ci95": accuracy.half_width}


def _adaptation(learner: Learner[Any], setting: SettingScores, gather: Gather) -> Iterator[dict[str, Any]]:
    """Accuracy after 0 steps and more, on the first episodes of a setting; nothing for a learner without steps."""
    if learner.inner_steps is None:
        return
    indices = setting.indices[:_FEW_EPISODES]
    for mode, in_mode in learner.normalization_modes().items():
        for n_steps in range(learner.inner_steps + 1):
            found = mean_interval(score_episodes(in_mode.with_inner_steps(n_steps), indices, gather).accuracy)
            yield {"mode": mode, "steps": n_steps, "accuracy": found.mean, "ci95": found.half_width}
