"""Score the trained learner on the frozen meta_test episodes, beside the pixel baseline."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kshot.algorithms.learner import NON_TRANSDUCTIVE
from kshot.checkpoint import SavedModel, load_model
from kshot.config import Params
from kshot.cpu_runtime import keep_freed_memory
from kshot.datasets.packed import PackedDataset
from kshot.distributed import choose_device
from kshot.episode import EpisodeShape
from kshot.episode_loader import image_gather
from kshot.evaluation import EpisodeScores, class_accuracy, mean_interval, score_episodes, score_pixels
from kshot.figures import accuracy_bars, class_distribution, training_curves
from kshot.live_lines import LiveLines
from kshot.report import figure_uri, render
from kshot.scorecard import CLASSES, EPISODES, METRICS, episodes_id, setting_name
from kshot.stages.task_pool import load_pool, test_pool_name


@dataclass(frozen=True, kw_only=True)
class SettingScores:
    """One n_way/k_shot setting in one normalisation mode, and the pixel baseline on the same episodes."""

    shape: EpisodeShape
    mode: str
    pool_hash: str
    scores: EpisodeScores
    baseline: EpisodeScores


def run(params: Params, root: Path) -> None:
    """Write metrics.json, episodes.parquet, per_class.parquet, plots/ and report.html."""
    if params.meta_train.keep_freed_memory:
        keep_freed_memory()
    dataset = PackedDataset.open(root / "data" / params.dataset.name)
    saved = load_model(root / "artifacts" / "meta_train" / "model")
    folder = root / "artifacts" / "evaluate"
    (folder / "plots").mkdir(parents=True, exist_ok=True)

    metrics, classes = write_scores(params, root, dataset, saved, folder)
    results = metrics["results"]
    headline = next(result for result in results if result["mode"] == NON_TRANSDUCTIVE)  # the mode that is served
    figures = {"accuracy": accuracy_bars(results), "classes": class_distribution(classes)}
    for name, figure in figures.items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=120)
    trained = root / "artifacts" / "meta_train"
    training = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    figures["training"] = training_curves(pd.read_parquet(trained / "history.parquet"))
    page = render(
        "evaluate.html.j2",
        metrics=metrics,
        training=training,
        headline=headline,
        worst=_worst_classes(classes, headline, params.evaluate.worst_classes),
        figures={name: figure_uri(figure) for name, figure in figures.items()},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def write_scores(
    params: Params, root: Path, dataset: PackedDataset, saved: SavedModel, folder: Path
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Score any model on the frozen episodes of `root`; metrics.json and per_class.parquet as they were written."""
    settings = list(score_settings(params, root, dataset, saved))
    results = [_result(setting) for setting in settings]
    pools = {setting_name(result): result["pool_hash"] for result in results}
    metrics = _summary(params, saved) | {"results": results, "episodes_id": episodes_id(dataset, pools)}
    classes = _class_table(settings, dataset)
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _episode_table(settings).to_parquet(folder / EPISODES, index=False)
    classes.to_parquet(folder / CLASSES, index=False)
    return metrics, classes


def score_settings(params: Params, root: Path, dataset: PackedDataset, saved: SavedModel) -> Iterator[SettingScores]:
    """Every configured setting, in every normalisation mode of the learner."""
    device = choose_device(params.meta_train.device)
    gather = image_gather(dataset, device)
    learner = saved.learner.to(device)
    lines = LiveLines(partial(print, flush=True))
    for shape in params.task_pool.meta_test.shapes():
        pool = load_pool(root, test_pool_name(shape), dataset)
        baseline = score_pixels(pool.indices, gather)
        for mode, in_mode in learner.normalization_modes().items():
            scores = score_episodes(in_mode, pool.indices, gather, lines=lines)
            lines.say(
                f"{shape} {mode}: {scores.accuracy.mean():.2%}, pixels {baseline.accuracy.mean():.2%}, "
                f"{len(pool):,} episodes"
            )
            yield SettingScores(shape=shape, mode=mode, pool_hash=pool.hash, scores=scores, baseline=baseline)


def _summary(params: Params, saved: SavedModel) -> dict[str, Any]:
    shape = saved.config.train_shape
    return {
        "dataset": params.dataset.name,
        "algorithm": saved.config.algorithm.name,
        "backbone": saved.config.backbone.name,
        "seed": params.seed,
        "train_shape": {"n_way": shape.n_way, "k_shot": shape.k_shot, "n_query": shape.n_query},
    }


def _result(setting: SettingScores) -> dict[str, Any]:
    model = mean_interval(setting.scores.accuracy)
    baseline = mean_interval(setting.baseline.accuracy)
    return {
        "n_way": setting.shape.n_way,
        "k_shot": setting.shape.k_shot,
        "n_query": setting.shape.n_query,
        "episodes": len(setting.scores.accuracy),
        "mode": setting.mode,
        "accuracy": model.mean,
        "ci95": model.half_width,
        "baseline_accuracy": baseline.mean,
        "baseline_ci95": baseline.half_width,
        "below_baseline": model.mean <= baseline.mean,
        "pool_hash": setting.pool_hash,
    }


def _episode_table(settings: list[SettingScores]) -> pd.DataFrame:
    """One row an episode."""
    return pd.concat(
        pd.DataFrame(
            {
                "n_way": setting.shape.n_way,
                "k_shot": setting.shape.k_shot,
                "mode": setting.mode,
                "episode": np.arange(len(setting.scores.accuracy)),
                "accuracy": setting.scores.accuracy,
                "baseline_accuracy": setting.baseline.accuracy,
            }
        )
        for setting in settings
    )


def _class_table(settings: list[SettingScores], dataset: PackedDataset) -> pd.DataFrame:
    """One row a class and setting: queries asked and the fraction answered right."""
    tables = []
    for setting in settings:
        classes, asked, accuracy = class_accuracy(setting.scores)
        tables.append(
            pd.DataFrame(
                {
                    "n_way": setting.shape.n_way,
                    "k_shot": setting.shape.k_shot,
                    "mode": setting.mode,
                    "class": [dataset.classes[c] for c in classes],
                    "group": [dataset.group_names[dataset.class_groups[c]] for c in classes],
                    "queries": asked,
                    "accuracy": accuracy,
                }
            )
        )
    return pd.concat(tables)


def _worst_classes(classes: pd.DataFrame, headline: dict[str, Any], n_worst: int) -> list[dict[Any, Any]]:
    """The classes with the lowest accuracy in the setting and mode of the headline."""
    setting = classes[
        (classes[["n_way", "k_shot", "mode"]] == [headline[k] for k in ("n_way", "k_shot", "mode")]).all(axis=1)
    ]
    return [dict(row) for row in setting.nsmallest(n_worst, "accuracy").to_dict("records")]
