"""The command that says which algorithms there are, from what stands beside the settings of each."""

from typing import NamedTuple, get_args, get_type_hints

from kshot.cli.output import say


class Row(NamedTuple):
    """What a learner is called and trained on, when to use it, what it costs, and where it is from."""

    name: str
    trained_on: str
    use: str
    cost: str
    source: str


def rows() -> list[Row]:
    """One for each algorithm of the table, in its order."""
    from kshot.algorithms import AlgorithmConfig
    from kshot.algorithms.learner import MetaLearner

    found = []
    for config in get_args(get_args(AlgorithmConfig)[0]):
        learner, about = get_type_hints(config.build)["return"], config.about
        trained_on = "episodes" if issubclass(learner, MetaLearner) else "classes"
        found.append(Row(config.name, trained_on, about.use, about.cost, about.source))
    return found


def algorithms() -> None:
    """List the algorithms, a line each: trained on, when to use, cost, source."""
    table = [Row("algorithm", "trained on", "when to use", "cost", "source"), *rows()]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
