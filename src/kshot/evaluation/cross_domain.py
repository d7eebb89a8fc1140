"""A learner on the held-out classes of a dataset that it was not trained on."""

from collections.abc import Mapping
from typing import Any

from kshot.algorithms.answering import normalization_modes
from kshot.algorithms.learner import Learner
from kshot.data.gather import Gather
from kshot.data.items.contract import ItemKind
from kshot.data.packed import PackedDataset
from kshot.episodes.pools import SampledPool, TaskPoolSettings
from kshot.episodes.sampling import EpisodeKind, check_feasible
from kshot.errors import DataError, EpisodeError
from kshot.evaluation.intervals import mean_interval
from kshot.evaluation.scoring import all_embedded_once, score_episodes
from kshot.runtime.lines import LiveLines


def check_scorable(dataset: PackedDataset, item: ItemKind, kinds: Mapping[str, EpisodeKind]) -> None:
    """Raise a KshotError unless a model that takes `item` can be scored on these episodes of the dataset."""
    check_item(dataset, item)
    for kind in kinds.values():
        try:
            check_feasible(dataset.class_table("meta_test"), kind.shape, kind.sampler)
        except EpisodeError as error:
            found = str(error).partition("; next: ")[0]
            raise EpisodeError(
                f"meta_test of {dataset.name}: {found}; next: take {dataset.name} out of cross_domain"
            ) from error


def check_item(dataset: PackedDataset, item: ItemKind) -> None:
    """Raise DataError where a model that takes `item` cannot read the items of the dataset."""
    if (dataset.item.kind, dataset.item.shape) != (item.kind, item.shape):
        raise DataError(
            f"{dataset.folder} has {dataset.item}; the model takes {item}; need the same kind and shape; "
            f"next: ingest it so under another name, or take {dataset.name} out of cross_domain in params.yaml"
        )


def score_cross_domain(
    learner: Learner[Any],
    dataset: PackedDataset,
    gather: Gather,
    settings: TaskPoolSettings,
    *,
    baselines: Mapping[str, Learner[Any]],
    lines: LiveLines,
) -> list[dict[str, Any]]:
    """A row for each setting of meta_test in each normalisation mode, on episodes drawn from `dataset`."""
    table = dataset.class_table("meta_test")
    modes, compared = (all_embedded_once(some, gather) for some in (normalization_modes(learner), baselines))
    results = []
    for setting, kind in settings.meta_test.kinds().items():
        pool = SampledPool.of_split(
            table, kind.shape, kind.sampler, seed=settings.seed, split=f"cross_domain/{dataset.name}"
        ).freeze(settings.meta_test.n_episodes)
        beside = {
            name: mean_interval(score_episodes(other, pool.indices, items).accuracy)
            for name, (other, items) in compared.items()
        }
        others = "".join(f"; {name} {interval.mean:.2%}" for name, interval in beside.items())
        for mode, (in_mode, items) in modes.items():
            found = mean_interval(score_episodes(in_mode, pool.indices, items, lines=lines).accuracy)
            lines.log(f"{dataset.name}: {kind} {mode}: {found.mean:.2%}{others}; {len(pool):,} episodes")
            results.append(
                {
                    "setting": setting,
                    "title": str(kind),
                    "mode": mode,
                    "episodes": len(pool),
                    "accuracy": found.mean,
                    "ci95": found.half_width,
                    "baselines": {name: {"accuracy": i.mean, "ci95": i.half_width} for name, i in beside.items()},
                    "pool_hash": pool.hash,
                }
            )
    return results
