"""Tables of labels: a row for each picture, in CSV of any usual dialect, in text with tabs or blanks, or in JSON lines.

Which column is which is told by the user, or found: the column of paths is the one whose cells name the most pictures,
the class stands under a usual name such as `class` or `label`, or is the only other column. Where that leaves a doubt,
nothing is guessed. Cells are text and nothing else: 001, NA and 1e3 are names of classes like any other.
"""

import codecs
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kshot.data.folders import FoundFile, Parts
from kshot.errors import DataError, UnknownColumnsError
from kshot.ingest.pictures import Naming, Pictures
from kshot.ingest.splits import split_of
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
_WAYS = "next: name its columns with --path-column and --class-column, or leave it out with --no-tables"


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
    """What a line says: "" for what it does not say. `where` is the table and the line, `picture` what `path` names."""

    where: str
    path: str
    picture: FoundFile | None
    class_name: str
    group: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of labels. `columns` are the headers of those that are used; `unused` are the others."""

    name: str
    file: str
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


def read_table(path: Path, name: str, pictures: Pictures, *, folder: Parts = (), asked: Columns | None = None) -> Table:
    """The table in `path`, called `name`, which lies in `folder` among the pictures.

    Raises UnknownColumnsError where no column names pictures, and DataError for other doubts and damage.
    """
    asked = asked or Columns()
    lines = read_lines(path, name)
    if not lines:
        raise UnknownColumnsError(f"{name} is empty; {_WAYS}")
    header, body = _header_and_body(lines, pictures, folder, name)
    for number, cells in body:
        if len(cells) != len(header):
            raise DataError(f"{name} line {number}: found {len(cells)} columns; needed {len(header)}; {_WAYS}")
    columns, naming = _found_columns(name, header, [cells for _, cells in body], pictures, folder, asked)
    at = {what: header.index(column) for what, column in columns.items() if column}
    rows = []
    for number, cells in body:
        where = f"{name} line {number}"
        said = {what: cells[at[what]] if what in at else "" for what in ("path", "class_name", "group", "split")}
        if any("\n" in cell for cell in said.values()):
            raise DataError(f"{where}: found a cell of several lines; needed one a cell; next: close its quotes")
        rows.append(Row(where=where, picture=_one_picture(pictures, said["path"], naming, where), **said))
    return Table(
        name=name,
        file=path.name,
        columns=Columns(**columns),
        unused=tuple(column for column in header if column and column not in columns.values()),
        rows=tuple(rows),
    )


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
    try:
        delimiter = _delimiter(rows, blanks=path.suffix.lower() == ".txt")
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
            f"{name} cannot be read as a CSV in UTF-8: {error}; next: iconv -f WINDOWS-1252 -t UTF-8 (or what it is in)"
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


def _found_columns(
    name: str, header: list[str], body: list[list[str]], pictures: Pictures, folder: Parts, asked: Columns
) -> tuple[dict[str, str], Naming | None]:
    """The header of each column that is used, and how that of the paths names pictures."""
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
    for what, names in (("split", _SPLITS), ("group", _GROUPS)):
        named = [column for column in free if _word(column) in names]
        if what not in taken and len(named) == 1 and (what == "group" or _holds_splits(header, body, named[0])):
            taken[what] = named[0]
            free.remove(named[0])
    if "class_name" not in taken:
        taken["class_name"] = _class_column(name, free, header, body)
    columns = {what: taken.get(what, "") for what in ("path", "class_name", "group", "split")}
    return columns, pictures.naming(_sample(header, body, taken["path"]), folder)


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


def _holds_splits(header: list[str], body: list[list[str]], column: str) -> bool:
    """Whether the cells are splits. A column that is called `split` has to hold them, and says so later where not."""
    at = header.index(column)
    cells = {cells[at] for cells in body[:_SAMPLED_ROWS]} - {""}
    return _word(column) == "split" or all(split_of(cell) for cell in cells)


def _class_column(name: str, free: list[str], header: list[str], body: list[list[str]]) -> str:
    """The column of a usual name, or the only one left; "" where there is none left."""
    if "class" in free:
        return "class"
    usual = [column for column in free if _word(column) in _CLASSES]
    if len(usual) == 1:
        return usual[0]
    if not usual and len(free) == 1 and not _numbers_rows([cells[header.index(free[0])] for cells in body]):
        return free[0]
    if not free:
        return ""
    raise DataError(
        f"{name} has the columns {_named(header)}, and which of {_named(usual or free)} is the class is not said; "
        f"next: --class-column {printable((usual or free)[0])}, for example, or leave the table out with --no-tables"
    )


def _numbers_rows(cells: list[str]) -> bool:
    """Whether every row has another value, so that the column is of numbers, names or captions, and not of classes."""
    return len(cells) > _FEW_ROWS and len(set(cells)) == len(cells)


def _word(header: str) -> str:
    return "".join(letter for letter in header.casefold() if letter.isalnum())


def _named(columns: Sequence[str]) -> str:
    shown = ", ".join(printable(column) or "(no name)" for column in columns[:_SHOWN])
    return f"{shown}, ..." if len(columns) > _SHOWN else shown or "(none)"
