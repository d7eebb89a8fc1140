"""Score the trained learner on the frozen meta_test episodes, beside the baselines on the very same ones."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kshot.algorithms.learner import NON_TRANSDUCTIVE, Learner
from kshot.baselines import baselines
from kshot.calibration import Bins, calibration_bins, fit_temperature
from kshot.checkpoint import SavedModel, load_model
from kshot.config import Params
from kshot.cpu_runtime import keep_freed_memory
from kshot.datasets.packed import PackedDataset
from kshot.distributed import choose_device
from kshot.episode import EpisodeShape
from kshot.episode_loader import Gather, image_gather
from kshot.evaluation import EpisodeScores, score_episodes
from kshot.figures import accuracy_bars, adaptation_curve, class_distribution, reliability, shot_curves, training_curves
from kshot.intervals import mean_interval
from kshot.live_lines import LiveLines
from kshot.per_class import class_accuracy, class_interval, confusions
from kshot.report import figure_uri, image_uri, render
from kshot.sampling import EpisodeIndices
from kshot.scorecard import CLASSES, EPISODES, METRICS, episodes_id, setting_name
from kshot.stages.task_pool import load_pool, test_pool_name

_ADAPTATION_EPISODES = 200  # of the first setting, for the curve over inner steps
_PICTURE_PX = 56


@dataclass(frozen=True, kw_only=True)
class SettingScores:
    """One n_way/k_shot setting in one normalisation mode; `baselines` by name, on the same episodes."""

    shape: EpisodeShape
    mode: str
    pool_hash: str
    indices: EpisodeIndices
    temperature: float
    scores: EpisodeScores
    baselines: dict[str, EpisodeScores]

    @property
    def is_served(self) -> bool:
        return self.mode == NON_TRANSDUCTIVE


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was found out, as it is written."""

    settings: list[SettingScores]
    metrics: dict[str, Any]
    classes: pd.DataFrame

    @property
    def headline(self) -> SettingScores:
        """The first setting in the mode that is served."""
        return next(setting for setting in self.settings if setting.is_served)


def run(params: Params, root: Path) -> None:
    """Write metrics.json, episodes.parquet, per_class.parquet, confusions.parquet, plots/ and report.html."""
    if params.meta_train.keep_freed_memory:
        keep_freed_memory()
    dataset = PackedDataset.open(root / "data" / params.dataset.name)
    saved = load_model(root / "artifacts" / "meta_train" / "model")
    folder = root / "artifacts" / "evaluate"
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    found = write_scores(params, root, dataset, saved, folder)

    figures = {
        "accuracy": accuracy_bars(found.metrics["results"]),
        "classes": class_distribution(found.classes),
        "calibration": reliability(_bins(found.headline, tempered=False), _bins(found.headline, tempered=True)),
    }
    if (shots := shot_curves(found.metrics["results"])) is not None:
        figures["shots"] = shots
    if found.metrics["adaptation"]:
        figures["adaptation"] = adaptation_curve(found.metrics["adaptation"])
    trained = root / "artifacts" / "meta_train"
    training = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    figures["training"] = training_curves(pd.read_parquet(trained / "history.parquet"))
    for name, figure in figures.items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=120)
    page = render(
        "evaluate.html.j2",
        metrics=found.metrics,
        training=training,
        headline=next(r for r in found.metrics["results"] if r["mode"] == NON_TRANSDUCTIVE),
        worst=_worst_classes(found, dataset, params.evaluate.worst_classes),
        groups=_groups(found),
        confusions=_confusion_table(found.headline, dataset).head(params.evaluate.worst_classes).to_dict("records"),
        figures={name: figure_uri(figure) for name, figure in figures.items()},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def write_scores(params: Params, root: Path, dataset: PackedDataset, saved: SavedModel, folder: Path) -> Evaluation:
    """Score any model on the frozen episodes of `root`, and write the numbers into `folder`."""
    device = choose_device(params.meta_train.device)
    gather, learner = image_gather(dataset, device), saved.learner.to(device)
    lines = LiveLines(partial(print, flush=True))
    settings = list(_score_settings(params, root, dataset, saved, gather, lines))
    results = [_result(setting, seed=params.seed) for setting in settings]
    pools = {setting_name(result): result["pool_hash"] for result in results}
    metrics = _summary(params, saved) | {
        "results": results,
        "adaptation": list(_adaptation(learner, settings[0], gather)),
        "episodes_id": episodes_id(dataset, pools),
    }
    classes = _class_table(settings, dataset)
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _episode_table(settings).to_parquet(folder / EPISODES, index=False)
    classes.to_parquet(folder / CLASSES, index=False)
    served = [_confusion_table(setting, dataset) for setting in settings if setting.is_served]
    pd.concat(served).to_parquet(folder / "confusions.parquet", index=False)
    return Evaluation(settings=settings, metrics=metrics, classes=classes)


def _score_settings(
    params: Params, root: Path, dataset: PackedDataset, saved: SavedModel, gather: Gather, lines: LiveLines
) -> Iterator[SettingScores]:
    """Every configured setting, in every normalisation mode of the learner; the temperature is that of meta_val."""
    modes = saved.learner.normalization_modes()
    val_pool = load_pool(root, "meta_val", dataset)
    temperatures = {mode: fit_temperature(learner, val_pool.indices, gather) for mode, learner in modes.items()}
    others = baselines(
        saved.config, dataset, gather, seed=params.seed, pretrain_steps=params.evaluate.pretrain_steps, lines=lines
    )
    for shape in params.task_pool.meta_test.shapes():
        pool = load_pool(root, test_pool_name(shape), dataset)
        beside = {name: score_episodes(learner, pool.indices, gather) for name, learner in others.items()}
        for mode, learner in modes.items():
            scores = score_episodes(learner, pool.indices, gather, temperature=temperatures[mode], lines=lines)
            lines.say(
                f"{shape} {mode}: {scores.accuracy.mean():.2%}; "
                + "; ".join(f"{name} {other.accuracy.mean():.2%}" for name, other in beside.items())
                + f"; {len(pool):,} episodes"
            )
            yield SettingScores(
                shape=shape,
                mode=mode,
                pool_hash=pool.hash,
                indices=pool.indices,
                temperature=temperatures[mode],
                scores=scores,
                baselines=beside,
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
    return {
        "n_way": setting.shape.n_way,
        "k_shot": setting.shape.k_shot,
        "n_query": setting.shape.n_query,
        "episodes": len(setting.scores.accuracy),
        "mode": setting.mode,
        "accuracy": model.mean,
        "ci95": model.half_width,
        "ci95_over_classes": list(class_interval(setting.scores, seed=seed)),
        "calibration_error": _bins(setting, tempered=False).expected_calibration_error,
        "temperature": setting.temperature,
        "tempered_calibration_error": _bins(setting, tempered=True).expected_calibration_error,
        "baselines": {name: {"accuracy": i.mean, "ci95": i.half_width} for name, i in beside.items()},
        "unbeaten": [name for name, interval in beside.items() if model.mean <= interval.mean],
        "pool_hash": setting.pool_hash,
    }


def _bins(setting: SettingScores, *, tempered: bool) -> Bins:
    scores = setting.scores
    return calibration_bins(scores.tempered if tempered else scores.confidence, scores.right)


def _adaptation(learner: Learner[Any], setting: SettingScores, gather: Gather) -> Iterator[dict[str, Any]]:
    """Accuracy after 0 steps and more, on the first episodes of a setting; nothing for a learner without steps."""
    if learner.inner_steps is None:
        return
    indices = setting.indices[:_ADAPTATION_EPISODES]
    for mode, in_mode in learner.normalization_modes().items():
        for n_steps in range(learner.inner_steps + 1):
            found = mean_interval(score_episodes(in_mode.with_inner_steps(n_steps), indices, gather).accuracy)
            yield {"mode": mode, "steps": n_steps, "accuracy": found.mean, "ci95": found.half_width}


def _episode_table(settings: list[SettingScores]) -> pd.DataFrame:
    """One row an episode; a column for each baseline."""
    return pd.concat(
        pd.DataFrame(
            {
                "n_way": setting.shape.n_way,
                "k_shot": setting.shape.k_shot,
                "mode": setting.mode,
                "episode": np.arange(len(setting.scores.accuracy)),
                "accuracy": setting.scores.accuracy,
            }
            | {name: scores.accuracy for name, scores in setting.baselines.items()}
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


def _confusion_table(setting: SettingScores, dataset: PackedDataset) -> pd.DataFrame:
    """One row for each pair of classes that were taken for one another, the worst first."""
    pairs = confusions(setting.scores)
    return pd.DataFrame(
        {
            "n_way": setting.shape.n_way,
            "k_shot": setting.shape.k_shot,
            "class": [dataset.classes[c] for c in pairs.true],
            "taken_for": [dataset.classes[c] for c in pairs.predicted],
            "times": pairs.times,
            "queries": pairs.asked,
        }
    )


def _groups(found: Evaluation) -> list[dict[Any, Any]]:
    """Accuracy of each group of classes in the headline, the lowest first."""
    rows = _of(found.classes, found.headline)
    right = (rows["accuracy"] * rows["queries"]).groupby(rows["group"]).sum()
    queries = rows["queries"].groupby(rows["group"]).sum()
    table = pd.DataFrame({"accuracy": right / queries, "queries": queries, "classes": rows.groupby("group").size()})
    return [dict(row) for row in table.sort_values("accuracy").reset_index().to_dict("records")]


def _worst_classes(found: Evaluation, dataset: PackedDataset, n_worst: int) -> list[dict[Any, Any]]:
    """The classes with the lowest accuracy in the headline, each with a query that went wrong, as pictures."""
    headline = found.headline
    rows = _of(found.classes, headline).nsmallest(n_worst, "accuracy").to_dict("records")
    number_of = {name: number for number, name in enumerate(dataset.classes)}
    return [dict(row) | {"mistake": _mistake(headline, dataset, number_of[str(row["class"])])} for row in rows]


def _mistake(setting: SettingScores, dataset: PackedDataset, class_id: int) -> dict[str, Any] | None:
    """The first query of a class that was answered wrong: its support, itself, and what it was taken for."""
    wrong = (setting.indices.class_ids == class_id)[:, :, None] & ~setting.scores.right
    if not wrong.any():
        return None
    episode, way, query = (int(number) for number in np.argwhere(wrong)[0])
    taken_for = int(setting.scores.predicted[episode, way, query])
    indices = setting.indices
    return {
        "support": _pictures(dataset, indices.support[episode, way]),
        "query": _pictures(dataset, indices.query[episode, way, query : query + 1])[0],
        "other": _pictures(dataset, indices.support[episode, taken_for]),
        "taken_for": dataset.classes[indices.class_ids[episode, taken_for]],
    }


def _pictures(dataset: PackedDataset, items: np.ndarray) -> list[str]:
    return [image_uri(pixels, max_size_px=_PICTURE_PX) for pixels in dataset.gather(items)]


def _of(table: pd.DataFrame, setting: SettingScores) -> pd.DataFrame:
    """The rows of one setting in one mode."""
    key = [setting.shape.n_way, setting.shape.k_shot, setting.mode]
    return table[(table[["n_way", "k_shot", "mode"]] == key).all(axis=1)]
