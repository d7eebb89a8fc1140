"""`kshot curate NAME ...`: what of a dataset is used, and as what."""

import csv
import json
import shlex
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kshot.cli.output import say, warn
from kshot.errors import DataError
from kshot.project.data_pointer import fetch_data, track_data
from kshot.workspace import Workspace

if TYPE_CHECKING:
    from kshot.ingest.curate import Census, CurateReport

app = typer.Typer(
    help="Leave out, relabel, move, merge or erase items of the dataset NAME; every edit but an erasure can be undone.",
    no_args_is_help=True,
    subcommand_metavar="OPERATION [ARGS]...",
)

Reason = Annotated[str, typer.Option(help="Kept with the edit.")]
Ids = Annotated[list[str] | None, typer.Option("--ids", help="An id, or a file with an id on each line.")]
Classes = Annotated[list[str] | None, typer.Option("--class", help="A class, for all of its items.")]
CsvFile = Annotated[
    Path | None, typer.Option("--list", help="CSV with a column id; of one with a column action, its rows with drop.")
]
Finding = Annotated[str, typer.Option(help="A check of the last validation, for the items that it would drop.")]


@app.callback()
def _name(context: typer.Context, name: Annotated[str, typer.Argument(help="A dataset under data/.")]) -> None:
    context.obj = name


@app.command()
def drop(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="More ids, or more classes after --class.")] = None,
    ids: Ids = None,
    class_: Classes = None,
    finding: Finding = "",
    list_: CsvFile = None,
    reason: Reason = "",
) -> None:
    """Leave items or whole classes out."""
    from kshot.ingest.curate import drop as leave_out
    from kshot.ingest.curate import to_drop_in

    names = names or []
    _check_one_source(f"kshot curate {context.obj} drop ID", ids or (names and not class_), class_, finding, list_)
    if class_:
        _edit(context, lambda folder: leave_out(folder, classes=[*class_, *names], reason=reason))
    elif finding:
        found = _found(context.obj, finding, ("drop", "may drop"))
        listed_classes = [] if any(row["id"] for row in found) else [row["class"] for row in found]
        _drop_listed(context, [row["id"] for row in found if row["id"]], listed_classes, reason or finding)
    elif list_:
        _drop_listed(context, *to_drop_in(list_), reason)
    else:
        _edit(context, lambda folder: leave_out(folder, ids=_ids_of([*(ids or []), *names]), reason=reason))


def _drop_listed(context: typer.Context, ids: Sequence[str], classes: Sequence[str], reason: str) -> None:
    """Leave out what is listed, but for what is out already."""
    from kshot.ingest.curate import drop as leave_out
    from kshot.ingest.curate import still_in_use

    workspace = Workspace.find()
    fetch_data(workspace)
    used_ids, used_classes = still_in_use(workspace.dataset(context.obj), ids, classes)
    n_out = len(set(ids)) + len(set(classes)) - len(used_ids) - len(used_classes)
    if n_out:
        say(f"{n_out:,} of {len(set(ids)) + len(set(classes)):,} listed items and classes are out already")
    if used_ids or used_classes:
        _edit(context, lambda folder: leave_out(folder, ids=used_ids, classes=used_classes, reason=reason))
    else:
        say("next: kshot validate")


@app.command()
def relabel(
    context: typer.Context,
    items: Annotated[list[str] | None, typer.Argument(metavar="ITEM...", help="Ids.")] = None,
    to: Annotated[str, typer.Option(help="The class that they get.")] = "",
    list_: Annotated[Path | None, typer.Option("--list", help="CSV with the columns id and class.")] = None,
    new_class: Annotated[bool, typer.Option("--new-class", help="Make a class that is not there.")] = False,
    reason: Reason = "",
) -> None:
    """Give items another class; each goes into the split of its new class."""
    from kshot.ingest.curate import classes_in
    from kshot.ingest.curate import relabel as relabel_items

    if list_ is not None and not items and not to:
        _edit(context, lambda folder: relabel_items(folder, classes_in(list_), reason, new_class=new_class))
    elif items and to and list_ is None:
        class_of = dict.fromkeys(items, to)
        _edit(context, lambda folder: relabel_items(folder, class_of, reason, new_class=new_class))
    else:
        raise DataError(
            "found neither items with --to CLASS nor --list FILE alone; needed one of them; "
            f"next: kshot curate {context.obj} relabel ID --to CLASS"
        )


@app.command("move-split")
def move_split(
    context: typer.Context,
    to: Annotated[str, typer.Option(help="meta_train, meta_val or meta_test; train, val, test for short.")],
    classes: Annotated[list[str] | None, typer.Argument(metavar="CLASS...")] = None,
    finding: Annotated[str, typer.Option(help="A check of the last validation, for the classes that it names.")] = "",
    reason: Reason = "",
) -> None:
    """Put classes into another split."""
    from kshot.ingest.curate import move_split as move

    _check_one_source(f"kshot curate {context.obj} move-split CLASS --to meta_train", classes, finding)
    chosen = [row["class"] for row in _found(context.obj, finding, ("",))] if finding else classes or []
    _edit(context, lambda folder: move(folder, chosen, to, reason or finding))


@app.command("merge-classes")
def merge_classes(
    context: typer.Context,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS...")],
    into: Annotated[str, typer.Option(help="One of them, another class of their split, or a new name.")],
    reason: Reason = "",
) -> None:
    """Make one class of several of one split."""
    from kshot.ingest.curate import merge_classes as merge

    _edit(context, lambda folder: merge(folder, classes, into, reason))


@app.command("min-images")
def min_images(
    context: typer.Context,
    n: Annotated[int, typer.Argument(help="Classes with fewer items are left out until they have so many.")],
    reason: Reason = "",
) -> None:
    """Leave out the classes with too few items."""
    from kshot.ingest.curate import min_images as leave_out_below

    _edit(context, lambda folder: leave_out_below(folder, n, reason))


@app.command()
def undo(
    context: typer.Context,
    number: Annotated[int | None, typer.Argument(help="Of an edit; the last one that holds where not given.")] = None,
    reason: Reason = "",
) -> None:
    """Take back an edit; undo an undo to bring its edit back."""
    from kshot.ingest.curate import undo as take_back

    _edit(context, lambda folder: take_back(folder, number, reason))


@app.command()
def history(context: typer.Context) -> None:
    """Every edit, in order."""
    from kshot.data.edits import in_force
    from kshot.data.packed import PackedDataset

    dataset = PackedDataset.open(_folder(context))
    edits = dataset.info.edits
    if not edits:
        say(f"{dataset.name}: no edit")
    for number, (edit, holds) in enumerate(zip(edits, in_force(edits), strict=True), start=1):
        reason = f" ({edit.reason})" if edit.reason else ""
        say(f"{number}  {edit}{reason}{'' if holds else ', undone'}")


@app.command()
def erase(
    context: typer.Context,
    ids: Ids = None,
    class_: Classes = None,
    list_: CsvFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: Reason = "",
) -> None:
    """Remove items from the stored bytes for good, such as personal data; it cannot be undone."""
    from kshot.data.union import unions_of
    from kshot.ingest.curate import editing, ids_in
    from kshot.ingest.erase import erase as erase_items
    from kshot.ingest.erase import rows_to_erase

    if not (ids or class_ or list_):
        raise DataError(f"found nothing to say which; needed one; next: kshot curate {context.obj} erase --ids ID")
    workspace = Workspace.find()
    fetch_data(workspace)
    folder = workspace.dataset(context.obj)
    named = [*_ids_of(ids or []), *(ids_in(list_) if list_ else ())]
    with editing(folder) as dataset:  # which also removes what an erasure left that was killed
        n_items = len(rows_to_erase(dataset, named, class_ or []))
    if not yes:
        typed = _typed(f"{n_items:,} of {dataset.info.n_items:,} items go for good. Type {dataset.name} to erase them")
        if typed != dataset.name:
            raise DataError(f"found {typed!r}; needed {dataset.name!r}, or --yes; nothing was erased")
    report = erase_items(folder, named, class_ or [], reason)
    for shown in (workspace.validation, workspace.output("validate")):
        shutil.rmtree(shown, ignore_errors=True)
    track_data(workspace, warn)
    say(f"{folder}: erased {report.erased:,} items from the shards, the manifest and the lists of edits")
    _show_counts(report.before, report.after)
    say("The reports of validation went too. Pages and registered versions of earlier runs may still show items.")
    say("An ingest of the same source would bring the items back: remove them there.")
    for union in unions_of(context.obj, workspace.data):
        remove = f"rm -r {shlex.quote(str(workspace.dataset(union)))}"
        say(f"The union {union} has copies of its own; next: {remove}, then kshot unite")
    if (workspace.root / ".dvc").is_dir():
        say("The cache of DVC and its remote still hold the earlier versions of the data. These commands delete")
        say("what nothing in this folder uses now; then no run on an earlier version can be repeated.")
        say("next: dvc gc --workspace")
        say("next: dvc gc --workspace --cloud")


def _typed(question: str) -> str:
    """What the person answers; "" where nobody does."""
    try:
        return str(typer.prompt(question))
    except typer.Abort:
        return ""


def _edit(context: typer.Context, operation: "Callable[[Path], CurateReport]") -> None:
    workspace = Workspace.find()
    fetch_data(workspace)
    report = operation(workspace.dataset(context.obj))
    track_data(workspace, warn)
    say(f"{report.folder}: edit {report.number}, {report.edit}")
    for note in report.notes:
        say(note)
    _show_counts(report.before, report.after)
    say(f"next: kshot validate (or kshot curate {report.folder.name} undo)")


def _show_counts(before: "Census", after: "Census") -> None:
    for split in before.items:
        say(
            f"{split:<10}  items {_change(before.items[split], after.items[split])}, "
            f"classes {_change(before.classes[split], after.classes[split])}"
        )


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _folder(context: typer.Context) -> Path:
    return Workspace.find().dataset(context.obj)


def _check_one_source(example: str, *given: object) -> None:
    n_given = sum(map(bool, given))
    if n_given != 1:
        found = "nothing" if n_given == 0 else "several ways"
        raise DataError(f"found {found} to say which; needed one; next: {example}")


def _ids_of(given: Sequence[str]) -> list[str]:
    """Ids as they are, and those in files: one on each line."""
    ids = []
    for one in given:
        path = Path(one)
        if path.suffix in (".txt", ".csv", "") and path.is_file():
            ids += [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line]
        else:
            ids.append(one)
    return ids


def _found(name: str, check: str, actions: Collection[str]) -> list[dict[str, str]]:
    """What a check of the last validation found and would have changed so: rows of findings.csv."""
    from kshot.data.packed import PackedDataset

    workspace = Workspace.find()
    folder = workspace.validation
    if not (folder / "findings.csv").is_file():
        raise DataError(f"no findings at {folder}/findings.csv; needed those of a validation; next: kshot validate")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    if facts["dataset"] != name:
        raise DataError(
            f"the last validation was of {facts['dataset']}; needed {name}; next: set dataset.name: {name}, validate"
        )
    if facts.get("stored_hash") != PackedDataset.open(workspace.dataset(name)).stored_hash:
        raise DataError(f"{name} holds other items than at its last validation; next: kshot validate")
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["action"] in actions]
    of_check = [row for row in rows if row["check"] == check]
    if not of_check:
        known = ", ".join(dict.fromkeys(row["check"] for row in rows)) or "none"
        raise DataError(
            f"the last validation of {name} found nothing to change for {check!r}; needed one of: {known}; "
            "next: kshot validate"
        )
    return of_check
