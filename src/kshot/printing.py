"""Text of unknown origin, such as a file's name, as it may be printed: on one line, and obeyed by no terminal."""

import unicodedata

# Control and format characters (which turn the direction of writing), separators of lines, and bytes that are no UTF-8.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""`text` with every character that is not plain text as its Python escape: \x1b, \r, \udce9.

    A zero-width joiner between letters is plain text in many scripts, and stays.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _is_plain(letter) else letter.encode("unicode_escape").decode() for letter in text)


def _is_plain(letter: str) -> bool:
    return letter in "\u200c\u200d" or unicodedata.category(letter) not in _ESCAPED
