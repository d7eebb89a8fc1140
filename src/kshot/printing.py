"""Text of unknown origin, such as a file's name, as it may be printed: on one line, and obeyed by no terminal."""

import io
import unicodedata
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.text import Text

_LETTERS_OF_A_LINE = 17  # of a narrow column

# Control and format characters (which turn the direction of writing), separators of lines, and bytes that are no UTF-8.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""`text` with every character that is not plain text as its Python escape: \x1b, \r, \udce9.

    A zero-width joiner between letters is plain text in many scripts, and stays.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _is_plain(letter) else letter.encode("unicode_escape").decode() for letter in text)


def storable(text: str) -> str:
    r"""`text` as a file in UTF-8 can hold it: true, but for bytes that are no UTF-8, which become escapes: \udce9."""
    return text.encode("utf-8", "backslashreplace").decode()


def counted(number: int, noun: str) -> str:
    """The number and its noun: 1 item, 2,000 items, 3 classes."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def listed(names: Sequence[str], shown: int = 4) -> str:
    """The first names, each in quotes, and three points where there are more."""
    first = ", ".join(repr(printable(name)) for name in names[:shown])
    return f"{first}, ..." if len(names) > shown else first


def in_short_lines(setting: str) -> str:
    """The title of a setting, such as 5-way 1-shot within a group, as the head of a narrow column: the shape first."""
    shape, shot, sampler = printable(setting).partition("-shot")
    return "\n".join([shape + shot, *wrap(sampler.lstrip(", "), _LETTERS_OF_A_LINE)])


def one_line(text: str) -> str:
    """`text` as it may be printed, its lines one after another: a message of another program may have several."""
    return " ".join(printable(line.strip(" \t")) for line in text.split("\n") if line.strip(" \t"))


def unstyled(text: str) -> "Text":
    """`text` on one line, as a table or a console shows it as it is: without markup, emoji or highlights."""
    from rich.text import Text

    return Text(printable(text))


def escape_missing_letters(stream: TextIO) -> None:
    r"""Let `stream` write letters that its encoding lacks as escapes, as in \xe9; else it ends the program."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _is_plain(letter: str) -> bool:
    return letter in "\u200c\u200d" or unicodedata.category(letter) not in _ESCAPED
