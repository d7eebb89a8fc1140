"""Commands on what a run starts from: its dataset and its settings."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from kshot.errors import ConfigError
from kshot.project.data_pointer import fetch_data, track_data
from kshot.workspace import Workspace

if TYPE_CHECKING:
    from kshot.data.items import AnyItemKind
    from kshot.ingest import SplitRequest

_WORKSPACE = Workspace(Path())
_REFUSED_SHOWN = 10


def ingest(
    source: Annotated[
        str, typer.Argument(help="Folder of class folders, CSV, zip or tar; or a built-in source, such as glyphs.")
    ],
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
    fetch_data(_WORKSPACE)
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
    track_data(_WORKSPACE, _warn)
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


def _warn(message: str) -> None:
    typer.echo(message, err=True)


def _check_no_options(source: str, *options: object) -> None:
    if any(options):
        raise ConfigError(
            f"{source} is built in, with its own name, size, splits and licence; next: kshot ingest {source}"
        )


def _item_spec(
    folder: Path, image_size: int | None, mode: Literal["grey", "colour"] | None, invert: bool
) -> "AnyItemKind | None":
    """What was asked for, over what the dataset has or a new one gets; None when nothing was asked for."""
    from kshot.data.items import ImageKind
    from kshot.data.packed import PackedDataset
    from kshot.ingest.pack import DEFAULT_ITEM

    if image_size is None and mode is None and not invert:
        return None
    known = PackedDataset.open(folder).item if (folder / "dataset.json").exists() else DEFAULT_ITEM
    if not isinstance(known, ImageKind):
        raise ConfigError(f"{folder} holds {known}; --image-size, --mode and --invert are for images")
    channels: dict[str | None, Literal[1, 3]] = {"grey": 1, "colour": 3, None: known.channels}
    try:
        return ImageKind(
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
