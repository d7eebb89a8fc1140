"""Commands on registered versions: make, promote, compare, use."""

import getpass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from kshot.cli.output import say, warn
from kshot.printing import unstyled
from kshot.workspace import Workspace

_NOT_PROMOTED = 3  # neither a mistake nor a failure


def register() -> None:
    """Make the finished run a version of the registered model, once."""
    from kshot.config import load_params
    from kshot.registry.page import renew_run_reports
    from kshot.registry.registration import register_run

    root = _root()
    done = register_run(root, load_params(Workspace(root).params), None)
    renew_run_reports(done.name, (done.version,), root, _warn)
    say(f"{done.name} version {done.version}: {'registered' if done.created else 'already there'}")
    say("next: kshot promote")


def promote(
    version: Annotated[int | None, typer.Option(help="Of register.model_name; the challenger where not given.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="The yes that approval: required waits for.")] = False,
) -> None:
    """Decide whether a version becomes champion, and move the alias if so; exit code 3 where it does not."""
    from kshot.config import load_params
    from kshot.registry.gate import decide_promotion
    from kshot.registry.page import renew_run_reports

    root = _root()
    params = load_params(Workspace(root).params)
    outcome = decide_promotion(root, params, by=_user(), version=version, approved=approve, report=say)
    say(f"{outcome.name}: {outcome}")
    renew_run_reports(outcome.name, (outcome.version, outcome.champion), root, _warn)
    if not outcome.is_champion:
        raise typer.Exit(_NOT_PROMOTED)


def rollback(
    reason: Annotated[str, typer.Option(help="Kept in the history.")],
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Make the champion before this one champion again."""
    from kshot.registry.page import renew_run_reports
    from kshot.tracking import rollback as roll_back

    root = _root()
    name = _model_name(model, root)
    move = roll_back(name, root, reason=reason, by=_user())
    renew_run_reports(name, (move.version, move.champion), root, _warn)
    say(f"version {move.version} is champion again, in place of version {move.champion}")


def history(
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Every move of the champion, and every refused one."""
    from kshot.tracking import history as moves_of

    root = _root()
    for move in moves_of(_model_name(model, root), root):
        place = f" in place of version {move.champion}" if move.champion else ""
        say(f"{move.number}  {move.time}  {move.action} version {move.version}{place}: {move.outcome}")
        say(f"   {move.reason} (by {move.by})")


def compare(
    before: Annotated[int, typer.Argument(help="A version.")],
    after: Annotated[int, typer.Argument(help="Another one.")],
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Two versions side by side: settings, data, code, and accuracy on the same episodes."""
    from kshot.registry.comparison import compare as compare_versions
    from kshot.registry.comparison_table import to_terminal

    root = _root()
    Console().print(to_terminal(compare_versions(_model_name(model, root), before, after, root)))


def report(
    version: Annotated[int, typer.Argument(help="A registered version.")],
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Make the page of a version again: results, decision, what changed since the champion, lineage."""
    from kshot.registry.page import write_run_report

    root = _root()
    say(str(write_run_report(_model_name(model, root), version, root)))


def predict(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or a model folder.")],
    support: Annotated[Path, typer.Argument(help="Folder of class folders with the K examples of each class.")],
    queries: Annotated[list[Path], typer.Argument(help="Images, or folders of images, to classify.")],
) -> None:
    """Classify images into the classes shown by a few examples each."""
    from kshot.algorithms.answering import NON_TRANSDUCTIVE, TRANSDUCTIVE
    from kshot.data.names import in_counts
    from kshot.serving.prediction import predict_files

    report = predict_files(model, support, queries, root=_root())
    table = Table(title=unstyled(f"{report.model}: {len(report.classes)} classes"), title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    for row in report.predicted:
        table.add_row(unstyled(str(row.file)), unstyled(row.class_name), f"{row.probability:.1%}")
    Console().print(table)
    if TRANSDUCTIVE in report.modes:
        warn(f"each image was answered alone, {NON_TRANSDUCTIVE}: the model's {TRANSDUCTIVE} scores do not hold here")
    if report.left_out:
        warn(f"left out: {in_counts(row.reason for row in report.left_out)}")
    for refused in report.refused:
        warn(f"refused: {refused.file}: {refused.reason}")
    if report.refused:
        raise typer.Exit(2)


def export(
    version: Annotated[
        str, typer.Argument(help="A version, models:/NAME@champion, models:/NAME/VERSION, or a model folder.")
    ],
    format_: Annotated[
        Literal["onnx", "torch"], typer.Option("--format", help="torch: a program of torch.export.")
    ] = "onnx",
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
    to: Annotated[Path | None, typer.Option(help="The folder to write; .kshot/exports/NAME-VERSION otherwise.")] = None,
    support: Annotated[
        Path | None, typer.Option(help="Folder of class folders: a classifier of these classes, for any algorithm.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the encoder, and measure what that costs.")] = False,
) -> None:
    """Write a model as files that run without kshot: ONNX and a runner of one file."""
    from kshot.export.exporting import Wanted
    from kshot.export.exporting import export as export_model

    wanted = Wanted(format=format_, support=support, int8=int8, to=to)
    export_model(version, wanted, registered_name=model, root=_root(), report=say)


def _root() -> Path:
    return Workspace.find().root.resolve()


def _model_name(given: str, root: Path) -> str:
    from kshot.config import load_params

    return given or load_params(Workspace(root).params).register.model_name


def _warn(words: str) -> None:
    warn(f"warning: {words}")


def _user() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a container whose user has no name
        return "unknown"
