"""`kshot monitor`: whether a model in use still sees what it was made for."""

from pathlib import Path
from typing import Annotated

import typer

from kshot.cli.output import say
from kshot.workspace import Workspace


def monitor(
    gallery: Annotated[str, typer.Argument(help="A gallery; each that was asked about, if not given.")] = "",
    answers: Annotated[Path | None, typer.Option(help="The log of a service; .kshot/answers, if not given.")] = None,
    window: Annotated[int, typer.Option(min=20, help="How many of the last answers to look at.")] = 200,
    reference: Annotated[int, typer.Option(min=20, help="How many of the first answers to compare with.")] = 200,
) -> None:
    """Compare the last answers of a service with the first of the same version: features, answers, unknown items."""
    from kshot.registry.watched import watch_galleries

    workspace = Workspace(Workspace.find().root.resolve())
    log = answers or workspace.answers
    for found, page in watch_galleries(workspace, log, gallery, n_window=window, n_reference=reference):
        say(f"{found.gallery}: {found.verdict}")
        if found.accuracy is not None:
            say(f"{found.gallery}: {found.accuracy:.1%} of {found.n_corrected} answers with feedback are right")
        say(f"{found.gallery}: {page}")
