"""Tables of labels: a row for each picture, in CSV of any usual dialect, in text with tabs or blanks, or in JSON lines.

Which column is which is told by the user, or found: the column of paths is the one whose cells name the most pictures,
the class stands under a usual name such as `class` or `label`, or in names of class folders, is the only other column,
or is the one of several columns that is 1. A column whose values are splits, or that says of each row whether it
is of one, gives the splits. Where that leaves a doubt, nothing is guessed. Cells are text and nothing else: 001, NA and
1e3 are names of classes like any other.
"""

import codecs
import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kshot.data.folders import FoundFile, Parts
from kshot.errors import DataError, UnknownColumnsError
from kshot.ingest.pictures import Naming, Pictures
from kshot.ingest.splits import splits_of, splits_of_flags
from kshot.printing import printable

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")

_DELIMITERS = ",;\t|"
_SAMPLED_ROWS = 200
_SHOWN = 8
_FEW_ROWS = 9  # may be of a class each
_PATHS = frozenset(
    {
        *(
            "path",
            "file",
            "filename",
            "filepath",
            "image",
            "imagename",
            "imagepath",
            "imageid",
            "img",
            "imgpath",
            "idcode",
        )
    }
)
_CLASSES = frozenset({"class", "label", "classname", "labelname", "classid", "category", "target", "species"})
_SPLITS = frozenset({"split", "subset", "partition", "phase", "set"})
_GROUPS = frozenset({"group"})
_MAY_SAY_SPLITS = frozenset(
    {"fold", "kfold", "cvfold", "partition", "usage", "isvalid", "istraining", "istrain", "istest"}
)
_SPLITS_LOOKED_AT = 20  # values of a column, beyond which they are no splits
_FLAG_WORDS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_ONE_HOT_SHARE = 0.9  # of rows, of which one column is 1
_WAYS = "next: name its columns with --path-column and --class-column, or leave it out with --no-tables"


SeveralLabels = Literal["", "leave-out", "one-class"]
"""What becomes of a picture with several labels in its row: refused with the table, left out, or a class of its own."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns by their headers, or by their numbers from 1; "" where one is to be found."""

    path: str = ""
    class_name: str = ""
    group: str = ""
    split: str = ""

    def __bool__(self) -> bool:
        return any((self.path, self.class_name, self.group, self.split))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a line says: "" for what it does not say. `where` is the table and the line, `picture` what `path` names.

    `fault` is why the line gives no class.
    """

    where: str
    path: str
    picture: FoundFile | None
    class_name: str
    group: str
    split: str
    fault: str = "its row names no class"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of labels. `columns` are the headers of those that are used; `unused` are the others."""

    name: str
    columns: Columns
    unused: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def is_documented(self) -> bool:
        """Whether the headers are path and class, in any capitals, which say without doubt that it is of labels."""
        return (self.columns.path.casefold(), self.columns.class_name.casefold()) == ("path", "class")

    def __str__(self) -> str:
        used = (
            ("path", self.columns.path),
            ("class", self.columns.class_name),
            ("group", self.columns.group),
            ("split", self.columns.split),
        )
        said = ", ".join(f"{what} in {printable(header)!r}" for what, header in used if header)
        return f"{printable(self.name)} ({said})"


def read_table(
    path: Path,
    name: str,
    pictures: Pictures,
    *,
    folder: Parts = (),
    asked: Columns | None = None,
    class_folders: Collection[str] = (),
    several: SeveralLabels = "",
    splits_are_known: bool = False,
) -> Table:
    """The table in `path`, called `name`, which lies in `folder` among the pictures.

    `class_folders` are names that a column of classes may hold; `splits_are_known` without this table.
    Raises UnknownColumnsError where no column names pictures, and DataError for other doubts and damage.
    """
    asked = asked or Columns()
    lines = read_lines(path, name)
    if not lines:
        raise UnknownColumnsError(f"{name} is empty; {_WAYS}")
    header, body = _header_and_body(lines, pictures, folder, name)
    for number, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{name} line {number}: found {len(cells)} column{'' if len(cells) == 1 else 's'}; "
                f"needed {len(header)}, as in its first line; next: mend that line, or leave the table out with "
                "--no-tables"
            )
    found = _found_columns(
        name, header, [cells for _, cells in body], pictures, folder, asked, class_folders, splits_are_known
    )
    at = {what: header.index(column) for what, column in found.columns.items() if column}
    rows = []
    for number, cells in body:
        where = f"{name} line {number}"
        said = {what: cells[at[what]] if what in at else "" for what in ("path", "class_name", "group", "split")}
        if any("\n" in cell for cell in said.values()):
            raise DataError(f"{where}: found a cell of several lines; needed one a cell; next: close its quotes")
        if found.one_hot:
            said["class_name"] = "|".join(
                column for column in found.one_hot if _FLAG_WORDS[cells[header.index(column)].casefold()]
            )
        said["split"] = found.splits.get(said["split"], said["split"])
        rows.append(Row(where=where, picture=_one_picture(pictures, said["path"], found.naming, where), **said))
    used = {*found.columns.values(), *found.one_hot}
    columns = Columns(**found.columns)
    return Table(
        name=name,
        columns=replace(columns, class_name=f"{_named(found.one_hot)}: which is 1") if found.one_hot else columns,
        unused=tuple(column for column in header if column and column not in used),
        rows=tuple(_with_one_label_each(rows, several, one_hot=bool(found.one_hot))),
    )


def _with_one_label_each(rows: Sequence[Row], several: SeveralLabels, *, one_hot: bool) -> Iterable[Row]:
    """The rows, those with several labels as `several` says. Raises DataError where it says nothing."""
    labels = Counter(row.class_name for row in rows)
    with_several = {label for label in labels if label and (("|" in label) if one_hot else _is_several(label, labels))}
    if not with_several or several == "one-class":
        return rows
    if several == "leave-out":
        fault = "its row has several labels"
        return (replace(row, class_name="", fault=fault) if row.class_name in with_several else row for row in rows)
    first = next(row for row in rows if row.class_name in with_several)
    n_rows = sum(labels[label] for label in with_several)
    raise DataError(
        f"{first.where}: found several labels, {printable(first.class_name)!r}, and in {n_rows - 1:,} other rows; "
        "needed one class for each picture; next: leave these pictures out with --several-labels leave-out, or take "
        "each combination as a class with --several-labels one-class"
    )


def _is_several(label: str, labels: Mapping[str, int]) -> bool:
    """Whether a cell holds several labels: with bars or semicolons one of them, else each of them, stands elsewhere."""
    for separator in "|;":
        parts = _parts(label, separator)
        if len(parts) > 1:
            others = (other for other in labels if other != label)
            return bool(set(parts).intersection(part for other in others for part in _parts(other, separator)))
    return any(
        len(parts) > 1 and all(part in labels for part in parts)
        for parts in (_parts(label, separator) for separator in ", ")
    )


def _parts(label: str, separator: str) -> list[str]:
    return [part for part in map(str.strip, label.split(separator)) if part]


def _one_picture(pictures: Pictures, called: str, naming: Naming | None, where: str) -> FoundFile | None:
    found = pictures.find(called, naming) if naming is not None else ()
    if len(found) > 1:
        raise DataError(
            f"{where}: {printable(called)!r} may be {_named([file.id for file in found])}; needed one picture; "
            "next: give the folder of the pictures with --images-in, or paths in the table"
        )
    return found[0] if found else None


def read_lines(path: Path, name: str) -> list[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty, the header included. Raises DataError."""
    text = _text(path, name)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(text, name)
    rows = io.StringIO(text, newline="").readlines()
    is_text = path.suffix.lower() == ".txt"
    n_comments = next((n for n, row in enumerate(rows) if not row.startswith("#")), 0) if is_text else 0
    rows[:n_comments] = ["\n"] * n_comments  # which keeps the numbers of the lines
    try:
        delimiter = _delimiter(rows, blanks=is_text)
        reader = csv.reader(rows, delimiter=delimiter, skipinitialspace=delimiter == " ", strict=True)
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{name} cannot be read as a CSV: {error}; next: close its quotes") from error


def _text(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read as a CSV in UTF-8: {error.strerror}") from error
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # a spreadsheet's "Unicode text"
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} cannot be read as a CSV in UTF-8: {error}; next: iconv -f WINDOWS-1252 -t UTF-8 "
            f"{shlex.quote(path.name)} > utf8 && mv utf8 {shlex.quote(path.name)} (or what it is in)"
        ) from error


def _json_lines(text: str, name: str) -> list[tuple[int, list[str]]]:
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise DataError(f"{name} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{name} line {number}: found {line[:40]!r}; needed an object, such as {{'file_name': ...}}"
            )
        records.append((number, record))
    header = list(dict.fromkeys(key for _, record in records for key in record))
    body = [(number, [_cell(record.get(key, "")) for key in header]) for number, record in records if record]
    return [(0, header), *body] if body else []


def _cell(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return "|".join(value)
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)


def _delimiter(rows: Sequence[str], *, blanks: bool) -> str:
    """The delimiter that cuts the most of the first lines into one number of cells, more than one; else the comma."""
    some = [row for row in rows[:_SAMPLED_ROWS] if row.strip()]
    best, best_share = ",", 0.0
    for delimiter in _DELIMITERS + " " * blanks:
        widths = [len(cells) for cells in csv.reader(some, delimiter=delimiter, skipinitialspace=delimiter == " ")]
        if not widths or widths[0] < 2:
            continue
        share = sum(width == widths[0] for width in widths) / len(widths)
        if share > best_share:
            best, best_share = delimiter, share
    return best


def _header_and_body(
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
class _FoundColumns:
    """The header of each column that is used, how that of the paths names pictures, and what values of splits mean.

    `one_hot` are columns that stand for a class each, where no column holds the classes.
    """

    columns: dict[str, str]
    naming: Naming | None
    splits: Mapping[str, str]
    one_hot: Sequence[str]


def _found_columns(
    name: str,
    header: list[str],
    body: list[list[str]],
    pictures: Pictures,
    folder: Parts,
    asked: Columns,
    class_folders: Collection[str],
    splits_are_known: bool,
) -> _FoundColumns:
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
        found = _path_column(free, header, body, pictures, folder)
        if not found:
            example = ", ".join(printable(cell) for cell in (body or [[]])[0][:_SHOWN])
            raise UnknownColumnsError(
                f"no column of {name} names pictures: it has the columns {_named(header)}"
                + (f", the first row is {example}" if example else "")
                + f"; {_WAYS}"
            )
        taken["path"] = found
        free.remove(found)
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
    return _FoundColumns(
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
    named = [column for column in saying if _word(column) in _SPLITS]
    if len(named) == 1 or len(saying) == 1:
        return (named or saying)[0]
    if saying and not splits_are_known:
        raise DataError(
            f"{name} has the columns {_named(saying)}, which may each say the splits; needed one; "
            f"next: --split-column {printable(saying[0])}, or --split-by class, which draws the splits"
        )
    doubtful = [column for column in values if _word(column) == "split" or _word(column) in _MAY_SAY_SPLITS]
    if doubtful and _word(doubtful[0]) == "split":
        return doubtful[0]
    if doubtful and not splits_are_known and any(values[doubtful[0]]):
        raise DataError(
            f"{name} has a column {printable(doubtful[0])!r}, which may say the splits, and holds "
            f"{_named(sorted(values[doubtful[0]]))}; needed train, val and test; next: write these there, or add "
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
        if body and all(cells[header.index(column)].casefold() in _FLAG_WORDS for cells in body)
    ]
    numbers = [header.index(column) for column in flags]
    n_single = sum(sum(_FLAG_WORDS[cells[number].casefold()] for number in numbers) == 1 for cells in body)
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
    raise DataError(f"{name} has no column {printable(asked)!r}; it has {_named(header)}")


def _path_column(
    free: list[str], header: list[str], body: list[list[str]], pictures: Pictures, folder: Parts
) -> str | None:
    """The column that names the most pictures; of equal ones, that with a usual name, then the leftmost."""
    best, best_score = None, (0, False)
    for column in free:
        cells = _sample(header, body, column)
        naming = pictures.naming(cells, folder)
        n_named = 0 if naming is None else pictures.n_named(cells, naming)
        usual = _word(column) in _PATHS
        if n_named and (usual or 2 * n_named >= len(cells)) and (n_named, usual) > best_score:
            best, best_score = column, (n_named, usual)
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
        f"{name} has the columns {_named(header)}, and which of {_named(usual or free)} is the class is not said; "
        f"next: --class-column {printable((usual or free)[0])}, for example, or leave the table out with --no-tables"
    )


def _holds(names: Collection[str], at: int, body: list[list[str]]) -> bool:
    return bool(names) and bool(body) and all(cells[at] in names for cells in body)


def _numbers_rows(cells: list[str]) -> bool:
    """Whether every row has another value, so that the column is of numbers, names or captions, and not of classes."""
    return len(cells) > _FEW_ROWS and len(set(cells)) == len(cells)


def _word(header: str) -> str:
    return "".join(letter for letter in header.casefold() if letter.isalnum())


def _named(columns: Sequence[str]) -> str:
    shown = ", ".join(printable(column) or "(no name)" for column in columns[:_SHOWN])
    return f"{shown}, ..." if len(columns) > _SHOWN else shown or "(none)"
