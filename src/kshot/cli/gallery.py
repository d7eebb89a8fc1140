"""`kshot gallery ...`: the galleries of a service that runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kshot.cli.output import say
from kshot.errors import ConfigError, UserError
from kshot.printing import counted, unstyled

if TYPE_CHECKING:
    from kshot.client import Client

_URL, _KEY = "KSHOT_SERVICE_URL", "KSHOT_SERVICE_KEY"
_AT_ONCE = 8

Url = Annotated[str, typer.Option(envvar=_URL, help="Where the service is.")]
Name = Annotated[str, typer.Argument(help="A gallery.")]
_HERE = "http://127.0.0.1:8400"

app = typer.Typer(
    help=f"Galleries of a service: sets of classes with examples. {_KEY} has the key.", no_args_is_help=True
)


@app.command("list")
def list_(
    name: Annotated[str, typer.Argument(help="A gallery; all of them, if not given.")] = "", url: Url = _HERE
) -> None:
    """The galleries, or the classes of one with their numbers of examples."""
    with _client(url) as client:
        if not name:
            for gallery in client.galleries():
                say(gallery)
            return
        for class_name, examples in client.classes(name).items():
            say(f"{class_name}: {counted(len(examples), 'example')}")


@app.command()
def add(
    name: Name,
    class_name: Annotated[str, typer.Argument(help="A class, which is made where it is not there.")],
    files: Annotated[list[Path], typer.Argument(help="Pictures of it.")],
    url: Url = _HERE,
) -> None:
    """Add examples to a class."""
    with _client(url) as client:
        for start in range(0, len(files), _AT_ONCE):
            client.add(name, class_name, files[start : start + _AT_ONCE])
    say(f"{counted(len(files), 'example')} of {class_name} in {name}")


@app.command()
def ask(name: Name, files: Annotated[list[Path], typer.Argument(help="Pictures.")], url: Url = _HERE) -> None:
    """Classify pictures."""
    table = Table()
    for title in ("image", "class", "probability", "nearest"):
        table.add_column(title, overflow="fold")
    with _client(url) as client:
        for start in range(0, len(files), _AT_ONCE):
            part = files[start : start + _AT_ONCE]
            for file, answer in zip(part, client.classify(name, part), strict=True):
                told = "none of them" if answer["unknown"] else answer["class"]
                near = answer["nearest"]["class"] if answer["nearest"] else ""
                table.add_row(unstyled(str(file)), unstyled(told), f"{answer['probability']:.1%}", unstyled(near))
    Console().print(table)


@app.command()
def quality(name: Name, url: Url = _HERE) -> None:
    """How often an example is known by the others, and which classes are confused."""
    with _client(url) as client:
        found = client.quality(name)
    if found["accuracy"] is None:
        raise UserError(
            f"no class of {name} has two examples; need two of some; next: kshot gallery add {name} CLASS FILES"
        )
    low, high = found["interval"]
    shown = counted(found["examples"], "example")
    say(f"{found['accuracy']:.1%} of {shown} ({low:.1%} to {high:.1%}), {found['model']}")
    for row in found["confused"]:
        say(f"{row['class']} taken for {row['told']}: {counted(row['times'], 'time')}")
    if change := found["change"]:
        say(f"{change['before']} had {change['accuracy_before']:.1%} of {change['examples']}: {change['verdict']} now")


@app.command()
def rename(name: Name, before: str, after: str, url: Url = _HERE) -> None:
    """Give a class another name."""
    with _client(url) as client:
        client.rename(name, before, after)
    say(f"{before} is called {after}")


@app.command()
def delete(
    name: Name,
    class_name: Annotated[str, typer.Argument(help="A class; the whole gallery, if not given.")] = "",
    url: Url = _HERE,
) -> None:
    """Delete a class, or a gallery, with its examples."""
    with _client(url) as client:
        client.delete(name, class_name or None)
    say(f"{class_name or name} is deleted")


@app.command()
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A new folder, a source of kshot ingest.")],
    answers: Annotated[
        Path | None, typer.Option(help="The log of a service: pictures whose right class somebody said come too.")
    ] = None,
    url: Url = _HERE,
) -> None:
    """Write the examples into class folders."""
    if folder.exists():
        raise ConfigError(f"{folder} is there already; need a new folder")
    from kshot.serving.galleries import folder_of

    corrected = [] if answers is None else list(_corrected(answers, name))
    with _client(url) as client:
        examples = [
            (class_name, example_id, client.example(name, class_name, example_id))
            for class_name, ids in client.classes(name).items()
            for example_id in ids
        ]
    for class_name, file_name, picture in (*examples, *corrected):
        target = folder / folder_of(class_name)
        target.mkdir(parents=True, exist_ok=True)
        (target / file_name).write_bytes(picture)  # what is an example and was asked about too is one file
    of_answers = f" and {counted(len(corrected), 'corrected answer')}" if corrected else ""
    say(f"{counted(len(examples), 'example')}{of_answers} in {folder}")
    say(f"next: kshot ingest {folder} --name {name}")


def _corrected(answers: Path, gallery: str) -> "Iterator[tuple[str, str, bytes]]":
    from kshot.monitoring.answers import corrected_pictures
    from kshot.serving.galleries import example_id

    for class_name, picture in corrected_pictures(answers, gallery):
        yield class_name, example_id(picture), picture


@contextmanager
def _client(url: str) -> "Iterator[Client]":
    try:
        from kshot.client import Client
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; need the extra serving; next: pip install 'kshot[serving]'"
        ) from error
    with Client(url, key=os.environ.get(_KEY, "")) as client:
        yield client
