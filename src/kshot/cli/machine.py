"""Commands on this machine and its environment."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kshot.printing import unstyled
from kshot.workspace import Workspace


def doctor(
    stack: Annotated[bool, typer.Option("--stack", help="The servers of a team, and what is on them.")] = False,
) -> None:
    """Say what is missing on this machine and how to get it."""
    from kshot.project.doctor import checks
    from kshot.project.stack_checks import stack_checks

    results = (stack_checks if stack else checks)(Workspace.nearest().root.resolve())
    table = Table("", "check")
    for column in ("found", "needed", "next"):
        table.add_column(column, overflow="fold")
    for check in results:
        mark = "[green]ok[/]" if check.ok else "[red]missing[/]"
        table.add_row(mark, *map(unstyled, (check.name, check.found, check.needed, check.fix)))
    Console().print(table)
    if not all(check.ok for check in results):
        raise typer.Exit(1)


def kernels() -> None:
    """Compile the native kernels for this environment and processor; training goes on without them, slower."""
    from kshot.backbones.layers.native import build_native

    typer.echo(f"native kernels: {build_native()}")
