"""Which column of a table of labels is which: of paths, classes, groups and splits.

It is told by the user, or found: the column of paths is the one whose cells name the most pictures, the class stands
under a usual name such as `class` or `label`, or in names of class folders, is the only other column, or is the one of
several columns that is 1. A column whose values are splits, or that says of each row whether it is of one, gives the
splits. Where that leaves a doubt, nothing is guessed: the user is asked to name the column.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kshot.data.folders import Parts
from kshot.errors import DataError, UnknownColumnsError
from kshot.ingest.pictures import Naming, Pictures
from kshot.ingest.splits import splits_of, splits_of_flags
from kshot.printing import printable

_SAMPLED_ROWS = 200  # of which the column of paths is found
_SHOWN = 8
_FEW_ROWS = 9  # may be of a class each
_PATHS = frozenset(
    {"path", "file", "filename", "filepath", "image", "imagename", "imagepath", "imageid", "img", "imgpath", "idcode"}
)
_CLASSES = frozenset({"class", "label", "classname", "labelname", "classid", "category", "target", "species"})
_SPLITS = frozenset({"split", "subset", "partition", "phase", "set"})
_GROUPS = frozenset({"group"})
_MAY_SAY_SPLITS = frozenset(
    {"fold", "kfold", "cvfold", "partition", "usage", "isvalid", "istraining", "istrain", "istest"}
)
_SPLITS_LOOKED_AT = 20  # values of a column, beyond which they are no splits
FLAG_WORDS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_ONE_HOT_SHARE = 0.9  # of rows, of which one column is 1
WAYS = "next: name its columns with --path-column and --class-column, or leave it out with --no-tables"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns by their headers, or by their numbers from 1; "" where one is to be found."""

    path: str = ""
    class_name: str = ""
    group: str = ""
    split: str = ""

    def __bool__(self) -> bool:
        return any((self.path, self.class_name, self.group, self.split))


def header_and_body(
    lines: list[tuple[int, list[str]]], pictures: Pictures, folder: Parts, name: str
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """A first line that names a picture is no header, unless it is made of usual headers; columns then have numbers."""
    first = lines[0][1]
    usual = all(_word(cell) in _PATHS | _CLASSES | _SPLITS | _GROUPS for cell in first)
    if not usual and pictures.naming(first, folder) is not None:
        return [str(number) for number in range(1, len(first) + 1)], lines
    twice = next((cell for cell in first if cell and first.count(cell) > 1), None)
    if twice is not None:
        raise DataError(f"{name} has two columns {printable(twice)!r}; needed one name a column")
    return first, lines[1:]


@dataclass(frozen=True, kw_only=True)
class FoundColumns:
    """The header of each column that is used, how that of the paths names pictures, and what values of splits mean.

    `one_hot` are columns that stand for a class each, where no column holds the classes.
    """

    columns: dict[str, str]
    naming: Naming | None
    splits: Mapping[str, str]
    one_hot: Sequence[str]


def found_columns(
    name: str,
    header: list[str],
    body: list[list[str]],
    pictures: Pictures,
    folder: Parts,
    asked: Columns,
    class_folders: Collection[str],
    splits_are_known: bool,
) -> FoundColumns:
    """The columns of the table called `name`, as they are `asked` for or found from its `header` and rows `body`.

    `pictures`, `folder`, `class_folders` and `splits_are_known` are as in `read_table`. Raises UnknownColumnsError
    where no column names pictures, and DataError for other doubts.
    """
    taken = {
        what: _asked_column(name, header, given)
        for what, given in (
            ("path", asked.path),
            ("class_name", asked.class_name),
            ("group", asked.group),
            ("split", asked.split),
        )
        if given
    }
    free = [column for column in header if column and column not in taken.values()]
    if "path" not in taken:
        taken["path"] = _path_column(name, free, header, body, pictures, folder)
        free.remove(taken["path"])
    if "split" not in taken:
        taken["split"] = _split_column(name, free, header, body, splits_are_known)
    groups = [column for column in free if _word(column) in _GROUPS]
    if "group" not in taken and len(groups) == 1:
        taken["group"] = groups[0]
    free = [column for column in free if column not in taken.values()]
    one_hot: Sequence[str] = ()
    if "class_name" not in taken:
        one_hot = _one_hot(free, header, body)
        taken["class_name"] = "" if one_hot else _class_column(name, free, header, body, class_folders)
    return FoundColumns(
        columns={what: taken.get(what, "") for what in ("path", "class_name", "group", "split")},
        naming=pictures.naming(_sample(header, body, taken["path"]), folder),
        splits=_splits_in(taken["split"], _values(header, body, taken["split"])) if taken["split"] else {},
        one_hot=one_hot,
    )


def _split_column(
    name: str, free: Sequence[str], header: list[str], body: list[list[str]], splits_are_known: bool
) -> str:
    """The column that says the splits, or "". A column that is called `split` has to, and says so later where not."""
    values = {column: _values(header, body, column) for column in free if _word(column) not in _CLASSES}
    saying = [
        column
        for column, cells in values.items()
        if (splits := _splits_in(column, cells)) and (len(set(splits.values())) > 1 or _word(column) in _SPLITS)
    ]
    usual = [column for column in saying if _word(column) in _SPLITS]
    if len(usual) == 1 or len(saying) == 1:
        return (usual or saying)[0]
    if saying and not splits_are_known:
        raise DataError(
            f"{name} has the columns {named(saying)}, which may each say the splits; needed one; "
            f"next: --split-column {printable(saying[0])}, or --split-by class, which draws the splits"
        )
    doubtful = [column for column in values if _word(column) == "split" or _word(column) in _MAY_SAY_SPLITS]
    if doubtful and _word(doubtful[0]) == "split":
        return doubtful[0]
    if doubtful and not splits_are_known and any(values[doubtful[0]]):
        raise DataError(
            f"{name} has a column {printable(doubtful[0])!r}, which may say the splits, and holds "
            f"{named(sorted(values[doubtful[0]]))}; needed train, val and test; next: write these there, or add "
            "--split-by class, which draws the splits"
        )
    return ""


def _splits_in(column: str, values: Collection[str]) -> dict[str, str]:
    """The split of each value of a column, where all of them have one; else {}."""
    cells = [value for value in values if value]
    splits = splits_of(cells) if cells else {}
    return splits if cells and len(splits) == len(cells) else splits_of_flags(column, cells)


def _values(header: list[str], body: list[list[str]], column: str) -> set[str]:
    """The distinct cells of a column, up to a number beyond which they are no splits."""
    at = header.index(column)
    found: set[str] = set()
    for cells in body:
        found.add(cells[at])
        if len(found) > _SPLITS_LOOKED_AT:
            break
    return found


def _one_hot(free: Sequence[str], header: list[str], body: list[list[str]]) -> Sequence[str]:
    """The columns of 0 and 1 of which nearly each row has one 1; () where another column holds the classes."""
    if any(_word(column) in _CLASSES for column in free):
        return ()
    flags = [
        column
        for column in free
        if body and all(cells[header.index(column)].casefold() in FLAG_WORDS for cells in body)
    ]
    numbers = [header.index(column) for column in flags]
    n_single = sum(sum(FLAG_WORDS[cells[number].casefold()] for number in numbers) == 1 for cells in body)
    return flags if len(flags) > 1 and n_single >= _ONE_HOT_SHARE * len(body) else ()


def _asked_column(name: str, header: list[str], asked: str) -> str:
    """The column that the user named: as it is written, in other capitals, or by its number."""
    for column in header:
        if column == asked:
            return column
    folded = [column for column in header if column.casefold() == asked.casefold()]
    if len(folded) == 1:
        return folded[0]
    if asked.isdecimal() and 1 <= int(asked) <= len(header) and header[int(asked) - 1]:
        return header[int(asked) - 1]
    raise DataError(f"{name} has no column {printable(asked)!r}; it has {named(header)}")


def _path_column(
    name: str, free: list[str], header: list[str], body: list[list[str]], pictures: Pictures, folder: Parts
) -> str:
    """The column that names the most pictures; of equal ones, that with a usual name, then the leftmost."""
    best, best_score = "", (0, False)
    for column in free:
        cells = _sample(header, body, column)
        naming = pictures.naming(cells, folder)
        n_named = 0 if naming is None else pictures.n_named(cells, naming)
        usual = _word(column) in _PATHS
        if n_named and (usual or 2 * n_named >= len(cells)) and (n_named, usual) > best_score:
            best, best_score = column, (n_named, usual)
    if not best:
        example = ", ".join(printable(cell) for cell in (body or [[]])[0][:_SHOWN])
        raise UnknownColumnsError(
            f"no column of {name} names pictures: it has the columns {named(header)}"
            + (f", the first row is {example}" if example else "")
            + f"; {WAYS}"
        )
    return best


def _sample(header: list[str], body: list[list[str]], column: str) -> list[str]:
    """Distinct cells of a column, from rows all over the table."""
    at = header.index(column)
    rows = body[:: max(1, len(body) // _SAMPLED_ROWS)][:_SAMPLED_ROWS]
    return list(dict.fromkeys(cells[at] for cells in rows))


def _class_column(
    name: str, free: list[str], header: list[str], body: list[list[str]], class_folders: Collection[str]
) -> str:
    """The column of a usual name, of names of class folders, or the only one left; "" where there is none left."""
    if "class" in free:
        return "class"
    usual = [column for column in free if _word(column) in _CLASSES]
    if len(usual) == 1:
        return usual[0]
    of_folders = [column for column in free if _holds(class_folders, header.index(column), body)]
    if not usual and len(of_folders) == 1:
        return of_folders[0]
    if not free or (len(free) == 1 and _numbers_rows([cells[header.index(free[0])] for cells in body])):
        return ""
    if not usual and len(free) == 1:
        return free[0]
    raise DataError(
        f"{name} has the columns {named(header)}, and which of {named(usual or free)} is the class is not said; "
        f"next: --class-column {printable((usual or free)[0])}, for example, or leave the table out with --no-tables"
    )


def _holds(names: Collection[str], at: int, body: list[list[str]]) -> bool:
    return bool(names) and bool(body) and all(cells[at] in names for cells in body)


def _numbers_rows(cells: list[str]) -> bool:
    """Whether every row has another value, so that the column is of numbers, names or captions, and not of classes."""
    return len(cells) > _FEW_ROWS and len(set(cells)) == len(cells)


def _word(header: str) -> str:
    return "".join(letter for letter in header.casefold() if letter.isalnum())


def named(columns: Sequence[str]) -> str:
    """The first of some names, separated by commas, as a message shows them."""
    shown = ", ".join(printable(column) or "(no name)" for column in columns[:_SHOWN])
    return f"{shown}, ..." if len(columns) > _SHOWN else shown or "(none)"
