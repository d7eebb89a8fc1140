"""Commands around a service: start it, give keys to it, and use it."""

from pathlib import Path
from typing import Annotated

import typer

from kshot.cli.output import say, warn
from kshot.errors import ConfigError
from kshot.workspace import Workspace

_DEFAULT_PORT = 8400


def serve(
    model: Annotated[
        str,
        typer.Argument(help="models:/NAME@ALIAS, or models:/NAME/VERSION, or a folder; the champion, if not given."),
    ] = "",
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = _DEFAULT_PORT,
    galleries: Annotated[str, typer.Option(help="A folder or s3://BUCKET/PREFIX; if not given .kshot/galleries.")] = "",
    answers: Annotated[Path | None, typer.Option(help="A folder for the log; .kshot/answers, if not given.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The file of keys, of mode 0600.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="What the service is called; any name, if not given.")] = None,
    settings: Annotated[Path | None, typer.Option(help="A YAML file of limits, log and memory.")] = None,
) -> None:
    """Answer over HTTP with a registered model: galleries, a page, and an interface in /docs."""
    try:
        from kshot.serving.server import serve as start
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; need the extra serving; next: pip install 'kshot[serving]'"
        ) from error
    from kshot.serving.settings import read_settings

    workspace = Workspace.find()
    root = workspace.root.resolve()
    if not model:
        from kshot.config import load_params

        model = f"models:/{load_params(workspace.params).register.model_name}@champion"
    start(
        model,
        root,
        host=host,
        port=port,
        galleries=galleries or str(workspace.galleries),
        log=answers or workspace.answers,
        keys_file=keys,
        names=tuple(name or ()),
        settings=read_settings(settings),
    )


def serve_key(
    name: Annotated[str, typer.Argument(help="Whom it is for.")],
    keys: Annotated[Path, typer.Option(help="The file of keys.")],
    write: Annotated[bool, typer.Option("--write", help="It may also change galleries.")] = False,
) -> None:
    """Make a key of a service: it is shown once, and the file has its hash."""
    from kshot.serving.access import add_key

    secret = add_key(keys, name, write=write)
    warn(f"{keys} has the key of {name}; a service that runs takes it when it starts again")
    say(secret)
