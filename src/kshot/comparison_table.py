"""A comparison of two versions as tables on the terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from kshot.comparison import Change, Comparison, DataChange, ScoreChange
from kshot.intervals import Interval
from kshot.promotion import verdict_of

_CLASSES_SHOWN, _NAMES_SHOWN = 10, 5


def to_terminal(comparison: Comparison) -> RenderableType:
    versions = (f"version {comparison.before}", f"version {comparison.after}")
    return Group(
        f"{comparison.name}: {verdict(comparison)}",
        _scores("accuracy, %", versions, comparison.settings),
        _scores(f"classes that changed most, of {len(comparison.classes)}", versions, _most_changed(comparison)),
        _changes("settings", versions, comparison.params),
        _changes("code", versions, comparison.code),
        *data_lines(comparison.data),
    )


def verdict(comparison: Comparison) -> str:
    """One line on how the two differ in accuracy."""
    if comparison.same_weights:
        return "the same weights"
    if comparison.overall is None:
        return "scored on other episodes, so their accuracies do not compare"
    return f"{verdict_of(comparison.overall)}, {points(comparison.overall)} points over all settings"


def points(difference: Interval) -> str:
    return f"{100 * difference.mean:+.2f} ± {100 * difference.half_width:.2f}"


def data_lines(data: DataChange) -> Iterator[str]:
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


def _most_changed(comparison: Comparison) -> tuple[ScoreChange, ...]:
    return tuple(change for change in comparison.classes if change.before != change.after)[:_CLASSES_SHOWN]


def _scores(title: str, versions: tuple[str, str], changes: tuple[ScoreChange, ...]) -> RenderableType:
    table = Table("", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in (*versions, "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for change in changes:
        table.add_row(escape(change.name), _percent(change.before), _percent(change.after), _difference(change))
    return table


def _difference(change: ScoreChange) -> str:
    if change.difference is not None:
        return points(change.difference)
    if change.before is None or change.after is None:
        return ""
    return f"{100 * (change.after - change.before):+.2f}"


def _changes(title: str, versions: tuple[str, str], changes: tuple[Change, ...]) -> RenderableType:
    if not changes:
        return f"{title}: the same"
    table = Table("", *versions, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for change in changes:
        table.add_row(escape(change.name), escape(change.before), escape(change.after))
    return table


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return escape(", ".join(names[:_NAMES_SHOWN])) + more
