"""Two registered versions side by side: settings, data, code, and accuracy on the same episodes."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kshot.data.packed import INFO_FILE, PackedDataset, read_info
from kshot.evaluation.intervals import Interval, paired_difference
from kshot.evaluation.scorecard import CLASSES, EPISODES, METRICS, Scorecard, class_accuracies, read_scorecard
from kshot.promotion.rule import verdict_of
from kshot.tracking import RegisteredModel, fetch_model, fetch_run_files, flatten
from kshot.yaml_file import read_yaml

DATA_FOLDER = "data"  # among a run's artifacts: dataset.json and the manifest, never pixels
_FILES = (
    "params.yaml",
    f"{DATA_FOLDER}/{INFO_FILE}",
    *(f"evaluate/{name}" for name in (METRICS, EPISODES, CLASSES)),
)

_NAMES_SHOWN = 5
_CODE_TAGS = ("git_commit", "git_dirty", "kshot_version")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value before and after, as text; "" where there is none."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class ScoreChange:
    """Accuracies as fractions; `difference` is paired by episode, None where the episodes are others."""

    name: str
    before: float | None
    after: float | None
    difference: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class DataChange:
    """Classes of any split by name; items by the SHA-256 of their pixels."""

    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]
    classes_moved: tuple[Change, ...]  # between splits
    items_added: int
    items_removed: int

    @property
    def is_none(self) -> bool:
        return not (
            self.classes_added or self.classes_removed or self.classes_moved or self.items_added or self.items_removed
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is different in version `after` of a model from version `before`.

    `overall` is the paired difference over all settings, None where the two were scored on other episodes;
    `classes` are the held-out classes that both were scored on, the largest change first.
    """

    name: str
    before: int
    after: int
    params: tuple[Change, ...]
    code: tuple[Change, ...]
    data: DataChange
    same_model: bool  # the same weights, and the same algorithm on them
    overall: Interval | None
    settings: tuple[ScoreChange, ...]
    classes: tuple[ScoreChange, ...]


def compare(name: str, before: int, after: int, root: Path) -> Comparison:
    """Compare two versions by what their runs logged. Raises ModelError where a version or a file is missing."""
    models = [fetch_model(f"models:/{name}/{number}", root) for number in (before, after)]
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(position) for position in range(2)]
        for model, folder in zip(models, folders, strict=True):
            fetch_run_files(model.mlflow_run_id, _FILES, folder, root)
            info = read_info(folder / DATA_FOLDER)
            files = [f"{DATA_FOLDER}/{name}" for name in (info.manifest, *info.edit_files)]
            fetch_run_files(model.mlflow_run_id, files, folder, root)
        return _compare(models[0], models[1], folders[0], folders[1])


def verdict(comparison: Comparison) -> str:
    """One line on how the two differ in accuracy."""
    if comparison.same_model:
        return "the same weights"
    if comparison.overall is None:
        return "scored on other episodes, so their accuracies do not compare"
    return f"{verdict_of(comparison.overall)}, {points(comparison.overall)} points over all settings"


def points(difference: Interval) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    return f"{100 * difference.mean:+.2f} ± {100 * difference.half_width:.2f}"


def data_lines(data: DataChange) -> Iterator[str]:
    """The change of the data in words, a line each."""
    if data.is_none:
        yield "data: the same"
        return
    yield f"data: {data.items_added:,} items added, {data.items_removed:,} removed"
    for words, names in (("added", data.classes_added), ("removed", data.classes_removed)):
        if names:
            yield f"  {len(names)} classes {words}: {_listed(names)}"
    if data.classes_moved:
        moved = tuple(f"{move.name} ({move.before} -> {move.after})" for move in data.classes_moved)
        yield f"  {len(moved)} classes moved: {_listed(moved)}"


def _compare(old: RegisteredModel, new: RegisteredModel, old_folder: Path, new_folder: Path) -> Comparison:
    cards = [
        read_scorecard(folder / "evaluate", model.weights_sha256)
        for model, folder in ((old, old_folder), (new, new_folder))
    ]
    same_episodes = cards[0].episodes == cards[1].episodes
    return Comparison(
        name=new.name,
        before=old.version,
        after=new.version,
        params=_changes(*(flatten(read_yaml(folder / "params.yaml")) for folder in (old_folder, new_folder))),
        code=_changes(*({tag: model.tags.get(tag, "") for tag in _CODE_TAGS} for model in (old, new))),
        data=_data_change(old_folder / DATA_FOLDER, new_folder / DATA_FOLDER),
        same_model=(old.weights_sha256, old.algorithm) == (new.weights_sha256, new.algorithm),
        overall=paired_difference(cards[1].accuracy, cards[0].accuracy) if same_episodes else None,
        settings=tuple(_setting_changes(*cards, paired=same_episodes)),
        classes=_class_changes(*(class_accuracies(folder / "evaluate") for folder in (old_folder, new_folder))),
    )


def _setting_changes(before: Scorecard, after: Scorecard, *, paired: bool) -> Iterator[ScoreChange]:
    means = [{name: float(values.mean()) for name, values in card.accuracy.items()} for card in (before, after)]
    for name in dict.fromkeys([*means[0], *means[1]]):
        both = name in means[0] and name in means[1]
        yield ScoreChange(
            name=name,
            before=means[0].get(name),
            after=means[1].get(name),
            difference=(
                paired_difference({name: after.accuracy[name]}, {name: before.accuracy[name]})
                if both and paired
                else None
            ),
        )


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    return tuple(
        Change(name=name, before=before.get(name, ""), after=after.get(name, ""))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )


def _data_change(before: Path, after: Path) -> DataChange:
    data = [PackedDataset(folder, read_info(folder), b"") for folder in (before, after)]  # without the shards
    splits = [dataset.splits.by_class() for dataset in data]
    items = [set(dataset.manifest["sha256"].to_pylist()) for dataset in data]
    return DataChange(
        classes_added=tuple(sorted(splits[1].keys() - splits[0].keys())),
        classes_removed=tuple(sorted(splits[0].keys() - splits[1].keys())),
        classes_moved=tuple(change for change in _changes(*splits) if change.before and change.after),
        items_added=len(items[1] - items[0]),
        items_removed=len(items[0] - items[1]),
    )


def _class_changes(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[ScoreChange, ...]:
    both = [ScoreChange(name=name, before=before[name], after=after[name]) for name in before if name in after]
    return tuple(sorted(both, key=lambda change: -abs((change.after or 0) - (change.before or 0))))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
