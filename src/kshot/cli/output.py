"""Lines for the person at the terminal, with names of unknown origin made harmless."""

import typer

from kshot.printing import printable


def say(line: str) -> None:
    typer.echo(printable(line))


def warn(line: str) -> None:
    """A line beside the answer: on stderr."""
    typer.echo(printable(line), err=True)
