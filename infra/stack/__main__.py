"""python -m infra.stack start | stop | status | join | demo: the production stack of this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.stack import supervision
from infra.stack.demo import run_demo
from infra.stack.settings import read_or_make_stack, read_stack
from kshot.errors import KshotError
from kshot.printing import one_line, unstyled
from kshot.project.remote import Remote, set_default_remote
from kshot.workspace import Workspace

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Place = Annotated[Path | None, typer.Option("--folder", envvar="KSHOT_STACK", help="where its data and logs are")]


@app.command()
def start(folder: Place = None) -> None:
    """Start what does not run yet, wait until it works, and say where."""
    stack = read_or_make_stack(stack_folder(folder))
    console = Console()
    console.print(unstyled(f"starting the stack in {stack.folder}; a first start takes a minute"), soft_wrap=True)
    supervision.start(stack, lambda line: console.print(unstyled(line), soft_wrap=True))
    for line in (
        f"keys      {stack.client_environment_file}",
        f"logs      {stack.logs}",
        f"next      set -a; . {stack.client_environment_file}; set +a  or  make stack-demo",
    ):
        console.print(unstyled(line), soft_wrap=True)


@app.command()
def stop(folder: Place = None) -> None:
    """Stop every server; what they keep stays."""
    stack = read_stack(stack_folder(folder))
    print("stopped" if supervision.stop(stack) else "the stack did not run")


@app.command()
def join(folder: Place = None) -> None:
    """Make the stack's bucket the default DVC remote of this project, on this machine; keys stay in the environment."""
    stack = read_stack(stack_folder(folder))
    root = Workspace.find(Path.cwd()).root.resolve()
    set_default_remote(root, Remote(name="s3", url=f"s3://{stack.project_bucket.name}", endpoint_url=stack.s3_url))
    print(f"the default remote of {root} is s3://{stack.project_bucket.name} at {stack.s3_url}")


@app.command()
def demo(folder: Place = None) -> None:
    """The demo on the stack: deploy, trigger a run of the worker, wait for it, and print its table."""
    run_demo(read_stack(stack_folder(folder)), Workspace.find(Path.cwd()).root.resolve(), Console())


@app.command()
def status(folder: Place = None) -> None:
    """Say which servers run and answer; exit code 1 where one does not."""
    stack = read_stack(stack_folder(folder))
    table = Table("", "server", "state", "address", "log")
    found = [*supervision.statuses(stack)]
    for one in found:
        mark = "[green]ok[/]" if one.works else "[red]down[/]"
        table.add_row(mark, one.name, one.state, unstyled(one.address), unstyled(str(one.log)))
    Console().print(table)
    if not all(one.works for one in found):
        raise typer.Exit(1)


def stack_folder(given: Path | None) -> Path:
    return (given or Workspace.find(Path.cwd()).state / "stack").resolve()


if __name__ == "__main__":
    try:
        app()
    except KshotError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
