import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kshot.printing import (
    counted,
    escape_missing_letters,
    in_short_lines,
    listed,
    one_line,
    printable,
    storable,
    unstyled,
)

ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates too: they stand for bytes that are not UTF-8


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name (1).png", "plain name (1).png"),
        ("零件/größe/болт/😀.png", "零件/größe/болт/😀.png"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("Icon\r", r"Icon\r"),
        ("two\nlines\u2028three\x85", r"two\nlines\u2028three\x85"),
        ("gnp.\u202etxet", r"gnp.\u202etxet"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY_TEXT)
def test_printable_text_is_one_line_without_controls_that_utf8_can_hold(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in shown if letter not in "\u200c\u200d"} & {"Cc", "Cf", "Cs"}
    shown.encode()


@given(ANY_TEXT)
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
def test_letters_digits_and_signs_are_plain(text: str) -> None:
    assert printable(text) == text


@given(ANY_TEXT)
def test_stored_text_is_true_but_for_bytes_that_are_not_utf8(text: str) -> None:
    stored = storable(text)
    stored.encode()
    assert printable(stored) == printable(text)
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert stored == text


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line("found:\n\n\t{bad}\r\n  needed: \x1b[1mgood\n") == r"found: {bad}\r needed: \x1b[1mgood"


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", rb"gr\xf6\xdfe \u96f6"), ("latin-1", b"gr\xf6\xdfe \\u96f6")]
)
def test_a_stream_writes_letters_that_its_encoding_lacks_as_escapes(encoding: str, written: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    escape_missing_letters(stream)
    stream.write("größe 零")
    stream.flush()
    assert raw.getvalue() == written


def test_a_stream_of_no_encoding_is_left_alone() -> None:
    stream = io.StringIO()
    escape_missing_letters(stream)
    stream.write("größe")
    assert stream.getvalue() == "größe"


def test_unstyled_text_is_shown_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    console.print(unstyled("[bold]:cat: 1/2 'x'\x1b[31m"))
    assert console.file.getvalue() == "[bold]:cat: 1/2 'x'\\x1b[31m\n"  # type: ignore[attr-defined]


def test_the_sampler_of_a_setting_stands_below_its_shape_in_short_lines() -> None:
    assert in_short_lines("20-way 5-shot") == "20-way 5-shot"
    assert in_short_lines("5-way 1-shot, classes by weight 1") == "5-way 1-shot\nclasses by weight\n1"
    long = in_short_lines("5-way 1-shot within a domain: glyphs 0, omniglot 1")
    assert long == "5-way 1-shot\nwithin a domain:\nglyphs 0,\nomniglot 1"


def test_a_number_and_its_noun() -> None:
    assert [
        counted(n, noun) for n, noun in ((1, "item"), (0, "item"), (2_000, "item"), (3, "class"), (1, "class"))
    ] == [
        "1 item",
        "0 items",
        "2,000 items",
        "3 classes",
        "1 class",
    ]


def test_the_first_of_many_names_are_listed_as_they_may_be_printed() -> None:
    assert listed(["a", "b\x1b"]) == r"'a', 'b\\x1b'"
    assert listed(["a", "b", "c"], 2) == "'a', 'b', ..."
