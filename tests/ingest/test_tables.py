import json
from pathlib import Path
from typing import get_args

import pytest

from kshot.errors import DataError
from kshot.ingest.tables import SeveralLabels, read_table
from tests.ingest.toy_tables import CLASSES, PICTURES, labels, pictures, read


def text(separator: str = ",", header: str = "path,class", newline: str = "\n", quote: str = "") -> str:
    lines = [header.replace(",", separator)] * bool(header)
    lines += [f"{quote}{path}{quote}{separator}{quote}{name}{quote}" for path, name in CLASSES.items()]
    return newline.join(lines) + newline


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", text()),
        ("labels.csv", text(";")),
        ("labels.csv", text("|")),
        ("labels.tsv", text("\t")),
        ("labels.txt", text(" ", header="")),
        ("labels.csv", text(header="")),
        ("labels.csv", text(header="Path,Class")),
        ("labels.csv", text(header="image_path,species name")),
        ("labels.csv", text(header="file_name,label")),
        ("labels.csv", text(newline="\r\n", quote='"')),
        ("labels.csv", "\ufeff" + text(";", header="PATH,CLASS", newline="\r\n")),
        ("labels.csv", text("\t").encode("utf-16")),
        ("labels.csv", text().replace("batch", ".\\batch").replace("/", "\\")),
        ("labels.csv", text().replace("batch", "/home/somebody/pictures/batch")),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": p, "label": c}) for p, c in CLASSES.items())),
    ],
)
def test_the_usual_dialects_say_the_same(tmp_path: Path, name: str, content: str | bytes) -> None:
    table = read(tmp_path, content, name)
    assert {row.picture.id: row.class_name for row in table.rows if row.picture} == CLASSES


def test_numbers_in_json_lines_are_names_as_they_are_written(tmp_path: Path) -> None:
    content = '{"file": "batch0/0.png", "label": 7}\n\n{"file": "batch0/1.png", "label": 10}\n'
    assert labels(read(tmp_path, content, "metadata.jsonl")) == {"batch0/0.png": "7", "batch0/1.png": "10"}


@pytest.mark.parametrize(
    "cells", [("ant|bee", "bee"), ("ant;bee", "cow;bee"), ("ant, bee", "ant", "bee"), ("ant bee", "ant", "bee")]
)
def test_several_labels_in_a_cell_are_asked_about_left_out_or_one_class(tmp_path: Path, cells: tuple[str, ...]) -> None:
    rows = [("file", "label"), *((PICTURES[n], cell) for n, cell in enumerate(cells))]
    text = "".join("\t".join(row) + "\n" for row in rows)
    with pytest.raises(DataError, match="line 2: found several labels, .*next: .*--several-labels leave-out"):
        read(tmp_path, text, "labels.tsv")
    found = {
        several: [
            (row.class_name, row.fault)
            for row in read_table(tmp_path / "labels.tsv", "labels.tsv", pictures(*PICTURES), several=several).rows
        ]
        for several in get_args(SeveralLabels)[1:]
    }
    assert found["leave-out"][0] == ("", "its row has several labels")
    assert [name for name, _ in found["one-class"]] == list(cells)


def test_lists_of_labels_in_json_lines_are_several_labels(tmp_path: Path) -> None:
    text = '{"file": "batch0/0.png", "label": ["ant", "bee"]}\n{"file": "batch0/1.png", "label": ["ant"]}\n'
    with pytest.raises(DataError, match=r"found several labels, 'ant\|bee'"):
        read(tmp_path, text, "labels.jsonl")


@pytest.mark.parametrize("name", ["golden retriever", "tench, Tinca tinca", "a|b"])
def test_names_with_blanks_commas_and_bars_are_classes(tmp_path: Path, name: str) -> None:
    text = f'file,label\nbatch0/0.png,"{name}"\nbatch0/1.png,"labrador retriever"\n'
    assert read(tmp_path, text).rows[0].class_name == name


def test_rows_of_one_hot_columns_with_two_ones_or_none_are_no_class(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(40)]
    cells = [("1", "0") if number % 2 else ("0", "1") for number in range(40)]
    cells[3], cells[5] = ("1", "1"), ("0", "0")
    text = "image,cat,dog\n" + "".join(f"{n},{','.join(c)}\n" for n, c in zip(names, cells, strict=True))
    with pytest.raises(DataError, match=r"line 5: found several labels, 'cat\|dog', and in 0 other rows"):
        read(tmp_path, text, "labels.csv", *names)
    rows = read_table(tmp_path / "labels.csv", "labels.csv", pictures(*names), several="leave-out").rows
    assert (rows[3].fault, rows[5].fault) == ("its row has several labels", "its row names no class")


def test_first_lines_of_a_text_that_begin_with_a_hash_are_comments(tmp_path: Path) -> None:
    text = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37\nAbys_1 1 1 1\nAbys_2 2 1 2\n"
    table = read(tmp_path, text, "list.txt", "images/Abys_1.jpg", "images/Abys_2.jpg", class_name="2")
    assert [(row.where, row.class_name) for row in table.rows] == [("list.txt line 3", "1"), ("list.txt line 4", "2")]


def test_a_table_that_is_not_utf8_names_the_command_that_helps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="next: iconv -f WINDOWS-1252 -t UTF-8 labels.csv > utf8 && mv"):
        read(tmp_path, b"path,class\nbatch0/0.png," + b"caf\xe9\n")


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (("1.png", "2.png", "9.png"), ("x/1.png", "x/2.png", None)),  # and not y/9.png, which is called alike
        (("/data/x/1.png", "/data/x/2.png", "/data/dog/3.png"), ("x/1.png", "x/2.png", None)),
        (("x/1.png", "X/2.PNG", "../x/3.png"), ("x/1.png", "x/2.png", None)),
        (("c:\\x\\1.png", "c:\\x\\2", "c:\\x\\9"), ("x/1.png", "x/2.png", None)),
    ],
)
def test_a_row_whose_picture_is_missing_names_no_other_picture(
    tmp_path: Path, paths: tuple[str, ...], named: tuple[str | None, ...]
) -> None:
    names = ["x/1.png", "x/2.png", *(f"x/{number}.png" for number in range(10, 40)), "y/9.png", "3.png"]
    more = "".join(f"{paths[0].replace('1', str(number))},c\n" for number in range(10, 40))
    table = read(tmp_path, "path,class\n" + "".join(f"{path},c\n" for path in paths) + more, "labels.csv", *names)
    assert [row.picture and row.picture.id for row in table.rows[:3]] == list(named)


def test_names_that_pictures_of_two_folders_have_are_refused_and_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: '0' may be batch0/0.png, batch1/0.png; needed one.*--images-in"):
        read(tmp_path, "id,label\n0,a\n1,b\n")


def test_names_alone_are_found_in_any_folder_where_each_is_there_once(tmp_path: Path) -> None:
    names = [f"day{number % 5}/{number:03d}.jpg" for number in range(20)]
    table = read(tmp_path, "id,label\n" + "".join(f"{n:03d},c{n % 3}\n" for n in range(20)), "labels.csv", *names)
    assert [row.picture and row.picture.id for row in table.rows] == names


@pytest.mark.parametrize("text", ['path,class\nbatch0/0.png,ant\nbatch0/1.png,"bee\nbatch1/0.png,cow\n'])
def test_a_quote_that_is_left_open_does_not_swallow_rows(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="next: close its quotes"):
        read(tmp_path, text)
    with pytest.raises(DataError, match="line 4: found a cell of several lines; needed one a cell"):
        read(tmp_path, text.replace("cow", 'cow"'))


def test_a_hundred_thousand_rows_take_no_longer_each_than_a_few() -> None:
    """Pictures of one name in every folder are not gone through for each row."""
    found = pictures(*(f"class{kind}/{number}.png" for kind in range(300) for number in range(10)))
    cells = [f"somewhere/class{kind}/{number}.png" for kind in range(300) for number in range(10)]
    naming = found.naming(cells[:200], ())
    assert naming is not None and naming.folder == () and naming.cut == 1
    assert [file.id for cell in cells for file in found.find(cell, naming)] == [cell[10:] for cell in cells]
