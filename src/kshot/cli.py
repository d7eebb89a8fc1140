"""`kshot ...`: parse, call, turn errors into one line and an exit code.

Settings of a run live in params.yaml alone; the options here say which files to use. The heavy
packages are imported by the commands that need them.
"""

import getpass
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from kshot.errors import ConfigError, KshotError, StageError
from kshot.runtime.cpu import prepare_environment
from kshot.runtime.lifeline import die_with_pipeline
from kshot.workspace import Workspace

if TYPE_CHECKING:
    from kshot.data.packed import ItemSpec
    from kshot.ingest import SplitRequest

_WORKSPACE = Workspace(Path())
_REFUSED_SHOWN = 10
_FILES_OF_A_SMALL_DATASET = 3  # dataset.json, manifest and one shard: the embedded glyphs, which can be made again
_NOT_PROMOTED = 3  # neither a mistake nor a failure

app = typer.Typer(
    help="Few-shot meta-learning: from a dataset to a registered model. Settings: params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_debug = False


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False) -> None:
    global _debug
    _debug = debug


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="Folder of class folders, CSV, zip or tar; or glyphs, or omniglot.")],
    name: Annotated[str, typer.Option(help="Name of the dataset; a built-in source has its own.")] = "",
    image_size: Annotated[int | None, typer.Option(help="Pixels on a side, 84 for a new dataset.")] = None,
    mode: Annotated[Literal["grey", "colour"] | None, typer.Option(help="Colour for a new dataset.")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Dark ink on light paper becomes light on dark.")] = False,
    rotations: Annotated[bool, typer.Option("--rotations", help="Quarter turns of a class are classes too.")] = False,
    splits: Annotated[Path | None, typer.Option(help="CSV of class,split; else classes are drawn.")] = None,
    split_by: Annotated[
        Literal["class", "group"], typer.Option(help="What is drawn into a split as a whole.")
    ] = "class",
    seed: Annotated[int, typer.Option(help="Of the drawn splits.")] = 1,
    licence: Annotated[str, typer.Option(help="Noted in dataset.json and on the model card.")] = "",
) -> None:
    """Pack images into data/NAME, or append the new ones; damaged files are listed and left out."""
    from kshot.data.packed import SPLITS
    from kshot.ingest import BUILT_IN, ingest_built_in
    from kshot.ingest import ingest as ingest_images

    data = _WORKSPACE.data
    _fetch_other_datasets(data)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"ingest {name or source}", total=None, visible=False)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        if source in BUILT_IN and not Path(source).exists():
            _check_no_options(source, name, image_size, mode, invert, rotations, splits, licence)
            report = ingest_built_in(BUILT_IN[source], source, data, progress=show)
        else:
            if not name:
                raise ConfigError(f"no name for the dataset made of {source}; next: kshot ingest {source} --name NAME")
            report = ingest_images(
                Path(source),
                name,
                data,
                item=_item_spec(data / name, image_size, mode, invert),
                rotations=(0, 90, 180, 270) if rotations else None,
                licence=licence,
                splits=_split_request(splits, split_by, seed),
                progress=show,
            )
    _track_with_dvc(data)
    counts = ", ".join(f"{len(report.splits.of(split))} {split}" for split in SPLITS)
    typer.echo(
        f"{report.folder}: {report.n_items:,} items ({report.added:,} new), {report.n_classes:,} classes ({counts})"
    )
    for refused in report.quarantined[:_REFUSED_SHOWN]:
        typer.echo(f"refused: {refused.source}: {refused.reason}", err=True)
    if len(report.quarantined) > _REFUSED_SHOWN:
        typer.echo(
            f"refused: {len(report.quarantined):,} files in all, listed in {report.folder}/quarantine.csv", err=True
        )
    if report.folder.name not in BUILT_IN:
        typer.echo(f"next: set dataset.name: {report.folder.name} in params.yaml, then make train")


@app.command()
def kernels() -> None:
    """Compile the native kernels for this environment and processor; training goes on without them, slower."""
    from kshot.backbones.layers.native import build_native

    typer.echo(f"native kernels: {build_native()}")


@app.command()
def validate() -> None:
    """Check the dataset against params.yaml; critical findings stop the pipeline."""
    _run_stage("validate")


@app.command()
def pool() -> None:
    """Freeze the meta_val and meta_test episodes."""
    _run_stage("task_pool")


@app.command()
def train() -> None:
    """Meta-train the learner; resumes where a run of the same settings was cut off."""
    _run_stage("meta_train")


@app.command()
def evaluate() -> None:
    """Score the trained learner on held-out classes."""
    _run_stage("evaluate")


@app.command("cross-domain")
def cross_domain(dataset: Annotated[str, typer.Argument(help="A packed dataset under data/.")]) -> None:
    """Score the trained learner on the held-out classes of another dataset."""
    _run_stage("cross_domain", dataset)


@app.command()
def register() -> None:
    """Make the finished run a version of the registered model, once."""
    from kshot.config import load_params
    from kshot.registry.page import renew_run_reports
    from kshot.registry.registration import register_run

    done = register_run(Path.cwd(), load_params(_WORKSPACE.params), None)
    renew_run_reports(done.name, (done.version,), Path.cwd(), _warn)
    typer.echo(f"{done.name} version {done.version}: {'registered' if done.created else 'already there'}")
    typer.echo("next: kshot promote")


@app.command()
def promote(
    version: Annotated[int | None, typer.Option(help="Of register.model_name; the challenger where not given.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="The yes that approval: required waits for.")] = False,
) -> None:
    """Decide whether a version becomes champion, and move the alias if so; exit code 3 where it does not."""
    from kshot.config import load_params
    from kshot.registry.gate import consider
    from kshot.registry.page import renew_run_reports

    params = load_params(_WORKSPACE.params)
    outcome = consider(Path.cwd(), params, by=_user(), version=version, approved=approve, tell=typer.echo)
    typer.echo(f"{outcome.name}: {outcome}")
    renew_run_reports(outcome.name, (outcome.version, outcome.champion), Path.cwd(), _warn)
    if not outcome.is_champion:
        raise typer.Exit(_NOT_PROMOTED)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Kept in the history.")],
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Make the champion before this one champion again."""
    from kshot.registry.page import renew_run_reports
    from kshot.tracking import rollback as roll_back

    name = _model_name(model)
    move = roll_back(name, Path.cwd(), reason=reason, by=_user())
    renew_run_reports(name, (move.version, move.champion), Path.cwd(), _warn)
    typer.echo(f"version {move.version} is champion again, in place of version {move.champion}")


@app.command()
def history(
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Every move of the champion, and every refused one."""
    from kshot.tracking import history as moves_of

    for move in moves_of(_model_name(model), Path.cwd()):
        place = f" in place of version {move.champion}" if move.champion else ""
        typer.echo(f"{move.number}  {move.time}  {move.action} version {move.version}{place}: {move.outcome}")
        typer.echo(f"   {move.reason} (by {move.by})")


@app.command()
def compare(
    before: Annotated[int, typer.Argument(help="A version.")],
    after: Annotated[int, typer.Argument(help="Another one.")],
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Two versions side by side: settings, data, code, and accuracy on the same episodes."""
    from kshot.registry.comparison import compare as compare_versions
    from kshot.registry.comparison_table import to_terminal

    Console().print(to_terminal(compare_versions(_model_name(model), before, after, Path.cwd())))


@app.command()
def report(
    version: Annotated[int, typer.Argument(help="A registered version.")],
    model: Annotated[str, typer.Option(help="A registered model; register.model_name where not given.")] = "",
) -> None:
    """Make the page of a version again: results, decision, what changed since the champion, lineage."""
    from kshot.registry.page import write_run_report

    typer.echo(write_run_report(_model_name(model), version, Path.cwd()))


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or a model folder.")],
    support: Annotated[Path, typer.Argument(help="Folder of class folders with the K examples of each class.")],
    queries: Annotated[list[Path], typer.Argument(help="Images, or folders of images, to classify.")],
) -> None:
    """Classify images into the classes shown by a few examples each."""
    from kshot.serving.prediction import predict_files

    report = predict_files(model, support, queries, root=Path.cwd())
    table = Table(title=f"{report.model}: {len(report.classes)} classes", title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    for row in report.predicted:
        table.add_row(escape(str(row.file)), escape(row.class_name), f"{row.probability:.1%}")
    Console().print(table)
    for refused in report.refused:
        typer.echo(f"refused: {refused.file}: {refused.reason}", err=True)
    if report.refused:
        raise typer.Exit(2)


@app.command()
def doctor() -> None:
    """Say what is missing on this machine and how to get it."""
    from kshot.project.doctor import checks

    results = checks(Path.cwd())
    table = Table("", "check")
    for column in ("found", "needed", "next"):
        table.add_column(column, overflow="fold")
    for check in results:
        mark = "[green]ok[/]" if check.ok else "[red]missing[/]"
        table.add_row(mark, *map(escape, (check.name, check.found, check.needed, check.fix)))
    Console().print(table)
    if not all(check.ok for check in results):
        raise typer.Exit(1)


@app.command()
def preset(name: Annotated[str, typer.Argument(help="Name of a file in presets/, without .yaml.")]) -> None:
    """Make params.yaml the preset NAME; your own edits are never overwritten."""
    known = {path.stem: path for path in sorted(_WORKSPACE.presets.glob("*.yaml"))}
    if name not in known:
        raise ConfigError(f"no preset {name!r}; known: {', '.join(known) or 'none'}; next: run in the project folder")
    current = _WORKSPACE.params.read_bytes() if _WORKSPACE.params.exists() else None
    if current not in {None, *(path.read_bytes() for path in known.values())}:
        raise ConfigError(
            f"params.yaml has edits of yours, which the preset {name} would overwrite; "
            "next: mv params.yaml presets/mine.yaml (and later kshot preset mine), "
            "or run the flow on it as it is: make train"
        )
    shutil.copyfile(known[name], _WORKSPACE.params)


def _model_name(given: str) -> str:
    from kshot.config import load_params

    return given or load_params(_WORKSPACE.params).register.model_name


def _warn(words: str) -> None:
    typer.echo(f"warning: {words}", err=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a container whose user has no name
        return "unknown"


def _run_stage(name: str, *item: str) -> None:
    die_with_pipeline()
    prepare_environment()
    from importlib import import_module

    from kshot.config import load_params
    from kshot.stages import STAGES

    import_module(STAGES[name]).run(load_params(_WORKSPACE.params), Workspace(Path.cwd()), *item)


@app.command()
def stage(name: str, item: Annotated[str | None, typer.Argument()] = None) -> None:
    """Run the stage NAME here and now, whether or not its result is up to date."""
    _run_stage(name, *([] if item is None else [item]))


def _check_no_options(source: str, *options: object) -> None:
    if any(options):
        raise ConfigError(
            f"{source} is built in, with its own name, size, splits and licence; next: kshot ingest {source}"
        )


def _item_spec(
    folder: Path, image_size: int | None, mode: Literal["grey", "colour"] | None, invert: bool
) -> "ItemSpec | None":
    """What was asked for, over what the dataset has or a new one gets; None when nothing was asked for."""
    from kshot.data.packed import ItemSpec, PackedDataset
    from kshot.ingest.pack import DEFAULT_ITEM

    if image_size is None and mode is None and not invert:
        return None
    known = PackedDataset.open(folder).item if (folder / "dataset.json").exists() else DEFAULT_ITEM
    channels: dict[str | None, Literal[1, 3]] = {"grey": 1, "colour": 3, None: known.channels}
    try:
        return ItemSpec(
            image_size=known.image_size if image_size is None else image_size,
            channels=channels[mode],
            invert=invert or known.invert,
        )
    except ValueError:
        raise ConfigError(f"--image-size {image_size}; need 8 to 1024 pixels") from None


def _split_request(path: Path | None, split_by: Literal["class", "group"], seed: int) -> "SplitRequest":
    from kshot.ingest import SplitRequest
    from kshot.ingest.splits import SeededSplits, read_splits

    return SplitRequest(given=read_splits(path) if path else {}, seeded=SeededSplits(by=split_by, seed=seed))


def _track_with_dvc(data: Path) -> None:
    """Point data.dvc at what `data` holds now."""
    if not Path(".dvc").is_dir():
        typer.echo(f"no DVC project here: {data} is not versioned; next: dvc init", err=True)
        return
    done = _dvc("add", str(data))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageError(f"dvc add {data} exited with {done.returncode}: {last}")


def _fetch_other_datasets(data: Path) -> None:
    """In a fresh clone, get what data.dvc points at: the pointer will be made anew from what is there."""
    pointer = _WORKSPACE.data_pointer
    if not pointer.exists() or data.exists() or _dvc("pull", str(pointer)).returncode == 0:
        return
    n_files = sum(out.get("nfiles", 1) for out in yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"])
    if n_files > _FILES_OF_A_SMALL_DATASET:
        raise StageError(
            f"data.dvc points at {n_files} files that the remote does not give; need them, or this ingest "
            "would drop them from the pointer; next: dvc pull data.dvc, or rm data.dvc to begin anew"
        )


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", "--quiet", "--wait-for-lock", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> None:
    try:
        app(standalone_mode=True)
    except KshotError as error:
        if _debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
