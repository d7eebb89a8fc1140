"""Commands on what a run starts from: its dataset and its settings."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from kshot.cli.output import say, warn
from kshot.errors import ConfigError
from kshot.project.announce import announce as tell_of
from kshot.project.announce import check_can_announce
from kshot.project.data_pointer import fetch_data, track_data
from kshot.workspace import Workspace
from kshot.yaml_file import typed

if TYPE_CHECKING:
    from kshot.data.items import AnyItemKind
    from kshot.ingest import IngestReport, SplitRequest
    from kshot.ingest.source import Source

_REFUSED_SHOWN = 10
_PERCENTILE = "percentile"


def ingest(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="Folder of class folders, table, zip or tar; or a built-in source, such as glyphs.")
    ],
    name: Annotated[str, typer.Option(help="Name of the dataset; a built-in source has its own.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is understood, and the command that does it.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(help="Pixels on a side, 84 for a new dataset.")] = None,
    mode: Annotated[Literal["grey", "colour"] | None, typer.Option(help="Colour for a new dataset.")] = None,
    fit: Annotated[
        Literal["crop", "pad", "stretch"] | None,
        typer.Option(help="How a picture that is not square becomes one; a new dataset crops to the middle."),
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Dark ink on light paper becomes light on dark.")] = False,
    value_range: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="LOW:HIGH|percentile",
            help="What becomes 0..255 of pictures deeper than 8 bits; a new dataset finds their lowest to highest.",
        ),
    ] = "",
    rotations: Annotated[bool, typer.Option("--rotations", help="Quarter turns of a class are classes too.")] = False,
    splits: Annotated[Path | None, typer.Option(help="CSV of class,split.")] = None,
    split_by: Annotated[
        Literal["class", "group"] | None,
        typer.Option(help="Draw the splits, whatever the source says, by whole classes or groups."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the drawn splits.")] = 1,
    layout: Annotated[str, typer.Option(help="What the levels of folders are, such as split/class.")] = "",
    path_column: Annotated[str, typer.Option(help="Column of a table that names the picture.")] = "",
    class_column: Annotated[str, typer.Option(help="Column of the class.")] = "",
    group_column: Annotated[str, typer.Option(help="Column of the group.")] = "",
    split_column: Annotated[str, typer.Option(help="Column of the split.")] = "",
    several_labels: Annotated[
        Literal["leave-out", "one-class"] | None,
        typer.Option(help="What becomes of a picture whose row has several labels."),
    ] = None,
    images_in: Annotated[Path | None, typer.Option(help="Folder in which the pictures of a table lie.")] = None,
    no_tables: Annotated[bool, typer.Option("--no-tables", help="Take the classes from the folders alone.")] = False,
    keep_masks: Annotated[
        bool, typer.Option("--keep-masks", help="Files that are named like masks are pictures too.")
    ] = False,
    names: Annotated[str, typer.Option(help="Encoding of the names in an archive, such as gbk.")] = "",
    min_images: Annotated[
        int, typer.Option(min=0, help="Leave out classes of fewer pictures, as kshot curate does.")
    ] = 0,
    licence: Annotated[str, typer.Option(help="Noted in dataset.json and on the model card.")] = "",
    announce: Annotated[
        bool, typer.Option("--announce", help="Then send the data to the remote and tell Prefect, as kshot announce.")
    ] = False,
) -> None:
    """Pack images into data/NAME, or append the new ones; what is left out is listed with the reason."""
    from kshot.ingest import BUILT_IN, Columns, Reading, pack, read_layout
    from kshot.ingest.sources import open_source

    workspace = Workspace.find()
    data = workspace.data
    if announce:
        check_can_announce()
    if source in BUILT_IN and not Path(source).exists():
        _ingest_built_in(context, source, workspace)
        if announce:
            _announce(workspace, source)
        return
    if not name and not dry_run:
        raise ConfigError(
            f"no name for the dataset made of {source}; next: {_command(context, name=_suggested_name(source))}"
        )
    fetch_data(workspace)
    reading = Reading(
        columns=Columns(path=path_column, class_name=class_column, group=group_column, split=split_column),
        pictures=images_in,
        tables=not no_tables,
        layout=read_layout(layout) if layout else (),
        keep_masks=keep_masks,
        several=several_labels or "",
        draw_splits=split_by is not None,
        splits_are_given=splits is not None,
        names=names,
    )
    if splits and split_by:
        raise ConfigError("--splits gives the splits and --split-by draws them; needed one of both")
    request = _split_request(splits, split_by, seed)
    item = _item_spec(data / name, image_size, mode, fit, invert, _value_range(value_range)) if name else None
    with open_source(Path(source), reading) as opened:
        for line in _understood(opened, request, data / name if name else None, min_images):
            say(line)
        if dry_run:
            say(f"next: {_command(context, name=name or _suggested_name(source))}")
            return
        with _progress(f"ingest {name}") as show:
            report = pack(
                opened,
                name,
                data,
                item=item,
                rotations=(0, 90, 180, 270) if rotations else None,
                licence=licence,
                splits=request,
                find_range="percentile" if value_range == _PERCENTILE else "extremes",
                min_images=min_images,
                progress=show,
            )
    if min_images:
        _leave_out_small_classes(report.folder, min_images)
    _tell(report, workspace, known=frozenset(row.source for row in opened.refused))
    if announce:
        _announce(workspace, report.folder.name)
    say(f"next: set dataset.name: {typed(report.folder.name)} in params.yaml, then make train")


def _ingest_built_in(context: typer.Context, source: str, workspace: Workspace) -> None:
    from kshot.ingest import BUILT_IN, ingest_built_in

    given = [option for option in _typed(context) if option not in ("source", "announce")]
    if given:
        raise ConfigError(
            f"{source} is built in, with its own name, size, splits and licence; next: kshot ingest {source}"
        )
    fetch_data(workspace)
    with _progress(f"ingest {source}") as show:
        report = ingest_built_in(BUILT_IN[source], source, workspace.data, progress=show)
    _tell(report, workspace)


def announce(name: Annotated[str, typer.Argument(help="Of the dataset, in data/.")]) -> None:
    """Send the data to the default remote, and tell a Prefect server, whose deployment new-data then trains on it."""
    workspace = Workspace.find()
    known = sorted(path.parent.name for path in workspace.data.glob("*/dataset.json"))
    if name not in known:
        raise ConfigError(f"no data/{name}; found {', '.join(known) or 'none'}; next: kshot ingest PATH --name {name}")
    check_can_announce()
    _announce(workspace, name)


def _announce(workspace: Workspace, name: str) -> None:
    tell_of(workspace, name, say)
    say(f"announced {name}")


def unite() -> None:
    """Make the union of the datasets in dataset.of of params.yaml, or bring it up to date."""
    from kshot.config import load_params
    from kshot.ingest.union import unite

    workspace = Workspace.find()
    settings = load_params(workspace.params).dataset
    if not settings.of:
        raise ConfigError(
            f"dataset.of is empty: {settings.name} is no union; next: set dataset: {{name: both, of: [ONE, OTHER]}} in "
            "params.yaml"
        )
    fetch_data(workspace)
    with _progress(f"unite {settings.name}") as show:
        report = unite(settings.of, settings.name, workspace.data, progress=show)
    if report is None:
        say(f"data/{settings.name} is up to date")
        return
    _tell(report, workspace)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _leave_out_small_classes(folder: Path, n_images: int) -> None:
    """Curate the dataset so, unless it is already."""
    from kshot.data.edits import MinImages, in_force
    from kshot.data.packed import read_info
    from kshot.ingest.curate import min_images

    edits = read_info(folder).edits
    holding = [edit for edit, holds in zip(edits, in_force(edits), strict=True) if holds]
    if any(isinstance(edit, MinImages) and edit.n == n_images for edit in holding):
        return
    for note in min_images(folder, n_images).notes:
        say(note)


def _understood(source: "Source", request: "SplitRequest", folder: Path | None, min_images: int) -> Iterator[str]:
    """What was understood of `source`, to be added to the dataset in `folder` where there is one."""
    from kshot.data.packed import INFO_FILE, PackedDataset
    from kshot.ingest.understanding import understanding

    if folder is None or not (folder / INFO_FILE).is_file():
        return understanding(source, request, groups_before={}, splits_before=None, min_images=min_images)
    before = PackedDataset.open(folder)
    rows = before.stored_manifest
    return understanding(
        source,
        request,
        groups_before=dict(zip(rows["class"].to_pylist(), rows["group"].to_pylist(), strict=True)),
        splits_before=before.info.splits,
        curated=before.splits.by_class() if before.info.edits else {},
        min_images=min_images,
    )


def _tell(report: "IngestReport", workspace: Workspace, *, known: frozenset[str] = frozenset()) -> None:
    """Say what was packed, and what was refused but for the `known` files, of which it was said before."""
    from kshot.data.packed import SPLITS, PackedDataset
    from kshot.ingest.curate import rules_on_new_items

    track_data(workspace, warn)
    dataset = PackedDataset.open(report.folder)
    counts = ", ".join(f"{len(dataset.splits.of(split))} {split}" for split in SPLITS)
    n_classes = len(dataset.splits.by_class())
    say(f"{report.folder}: {dataset.n_stored:,} items ({report.added:,} new), {n_classes:,} classes ({counts})")
    for line in rules_on_new_items(dataset, report.added):
        say(line)
    for note, n_pictures in report.notes.items():
        say(f"{n_pictures:,} of {report.added + report.skipped:,} pictures {note}")
    news = [refused for refused in report.quarantined if refused.source not in known]
    for refused in news[:_REFUSED_SHOWN]:
        warn(f"refused: {refused.source}: {refused.reason}")
    if len(report.quarantined) > min(len(news), _REFUSED_SHOWN):
        warn(f"refused: {len(report.quarantined):,} in all, listed in {report.folder}/quarantine.csv")


def _typed(context: typer.Context) -> dict[str, object]:
    """The parameters that were typed, by name, in the order of the command's signature."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name: value for name, value in context.params.items() if getattr(sources[name], "name", "") == "COMMANDLINE"
    }


def _command(context: typer.Context, *, name: str) -> str:
    """The command that was typed, under the name `name` and not as a dry run."""
    typed = {**_typed(context), "name": name}
    words = ["kshot", "ingest", str(typed.pop("source"))]
    for option, value in typed.items():
        flag = "--range" if option == "value_range" else f"--{option.replace('_', '-')}"
        if option != "dry_run" and value is not None:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _suggested_name(source: str) -> str:
    """A name for the dataset that is made of `source`: its own, in letters that a name may have."""
    stem = Path(source).resolve().name
    for suffix in reversed(Path(stem).suffixes if not Path(source).is_dir() else []):
        stem = stem.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-_") or "pictures"


def preset(name: Annotated[str, typer.Argument(help="Name of a file in presets/, without .yaml.")]) -> None:
    """Make params.yaml the preset NAME; your own edits are never overwritten."""
    workspace = Workspace.find()
    known = {path.stem: path for path in sorted(workspace.presets.glob("*.yaml"))}
    if name not in known:
        raise ConfigError(f"no preset {name!r}; known: {', '.join(known) or 'none'}; next: run in the project folder")
    current = workspace.params.read_bytes() if workspace.params.exists() else None
    if current not in {None, *(path.read_bytes() for path in known.values())}:
        raise ConfigError(
            f"params.yaml has edits of yours, which the preset {name} would overwrite; "
            "next: mv params.yaml presets/mine.yaml (and later kshot preset mine), "
            "or run the flow on it as it is: make train"
        )
    shutil.copyfile(known[name], workspace.params)


def _item_spec(
    folder: Path,
    image_size: int | None,
    mode: Literal["grey", "colour"] | None,
    fit: Literal["crop", "pad", "stretch"] | None,
    invert: bool,
    value_range: tuple[float, float] | None,
) -> "AnyItemKind | None":
    """What was asked for, over what the dataset has or a new one gets; None when nothing was asked for."""
    from kshot.data.items import ImageKind
    from kshot.data.packed import PackedDataset
    from kshot.ingest.pack import DEFAULT_ITEM

    if image_size is None and mode is None and fit is None and not invert and value_range is None:
        return None
    known = PackedDataset.open(folder).item if (folder / "dataset.json").exists() else DEFAULT_ITEM
    if not isinstance(known, ImageKind):
        raise ConfigError(f"{folder} holds {known}; --image-size, --mode, --fit, --invert and --range are for images")
    channels: dict[str | None, Literal[1, 3]] = {"grey": 1, "colour": 3, None: known.channels}
    try:
        return replace(
            known,
            image_size=known.image_size if image_size is None else image_size,
            channels=channels[mode],
            fit=fit or known.fit,
            invert=invert or known.invert,
            value_range=value_range or known.value_range,
        )
    except ValueError:
        raise ConfigError(f"--image-size {image_size}; need 8 to 1024 pixels") from None


def _value_range(text: str) -> tuple[float, float] | None:
    """The two numbers of LOW:HIGH; None where none are given."""
    if text in ("", _PERCENTILE):
        return None
    low, _, high = text.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = (0.0, 0.0)
    if not (found[0] < found[1] and all(map(isfinite, found))):
        raise ConfigError(
            f"--range {text}; need LOW:HIGH, two numbers with the lower first, or percentile; "
            "next: for pictures of 12 bits, --range 0:4095"
        )
    return found


def _split_request(path: Path | None, split_by: Literal["class", "group"] | None, seed: int) -> "SplitRequest":
    from kshot.ingest import SplitRequest
    from kshot.ingest.splits import SeededSplits, read_splits

    return SplitRequest(
        given=read_splits(path) if path else {},
        draw=split_by is not None,
        seeded=SeededSplits(by=split_by or "class", seed=seed),
    )
