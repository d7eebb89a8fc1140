"""A comparison of two versions as tables on the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from kshot.printing import unstyled
from kshot.registry.comparison import Change, Comparison, ScoreChange, data_lines, points, verdict

_CLASSES_SHOWN = 10


def to_terminal(comparison: Comparison) -> RenderableType:
    versions = (f"version {comparison.before}", f"version {comparison.after}")
    return Group(
        unstyled(f"{comparison.name}: {verdict(comparison)}"),
        _scores("accuracy, %", versions, comparison.settings),
        _scores(f"classes that changed most, of {len(comparison.classes)}", versions, _most_changed(comparison)),
        _changes("settings", versions, comparison.params),
        _changes("code", versions, comparison.code),
        *map(unstyled, data_lines(comparison.data)),
    )


def _most_changed(comparison: Comparison) -> tuple[ScoreChange, ...]:
    return tuple(change for change in comparison.classes if change.before != change.after)[:_CLASSES_SHOWN]


def _scores(title: str, versions: tuple[str, str], changes: tuple[ScoreChange, ...]) -> RenderableType:
    table = Table("", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in (*versions, "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for change in changes:
        table.add_row(unstyled(change.name), _percent(change.before), _percent(change.after), _difference(change))
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
        table.add_row(*map(unstyled, (change.name, change.before, change.after)))
    return table


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"
