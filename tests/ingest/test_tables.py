import json
from pathlib import Path

import pytest

from kshot.data.folders import FoundFile
from kshot.errors import DataError
from kshot.ingest.tables import Columns, Pictures, Table, UnknownColumnsError, read_table

PICTURES = ("batch0/0.png", "batch0/1.png", "batch1/0.png", "batch1/1.png")
CLASSES = {"batch0/0.png": "ant", "batch0/1.png": "bee", "batch1/0.png": "001", "batch1/1.png": "NA"}


def pictures(*names: str) -> Pictures:
    return Pictures([FoundFile(parts=tuple(name.split("/")), path=Path(name)) for name in names])


def read(tmp_path: Path, content: str | bytes, name: str = "labels.csv", *names: str, **asked: str) -> Table:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, name, pictures(*(names or PICTURES)), asked=Columns(**asked))


def labels(table: Table) -> dict[str, str]:
    return {row.path: row.class_name for row in table.rows}


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
    find = pictures(*PICTURES).find
    assert {find(row.path)[0].id: row.class_name for row in table.rows} == CLASSES


def test_numbers_in_json_lines_are_names_as_they_are_written(tmp_path: Path) -> None:
    content = '{"file": "batch0/0.png", "label": 7}\n\n{"file": "batch0/1.png", "label": 10}\n'
    assert labels(read(tmp_path, content, "metadata.jsonl")) == {"batch0/0.png": "7", "batch0/1.png": "10"}


@pytest.mark.parametrize("header", ["id_code,diagnosis", "Id,Whatever", "image,label"])
def test_pictures_may_be_named_without_folder_and_extension(tmp_path: Path, header: str) -> None:
    table = read(tmp_path, f"{header}\n00a,3\n00b,4\n", "train.csv", "train_images/00a.png", "train_images/00b.png")
    assert labels(table) == {"00a": "3", "00b": "4"}


def test_the_column_that_names_the_most_pictures_is_the_path_whatever_the_others_look_like(tmp_path: Path) -> None:
    """Classes 0 and 1 are the stems of pictures too."""
    table = read(tmp_path, "level,file\n0,batch0/0.png\n1,batch0/1.png\n0,batch1/0.png\n1,batch1/1.png\n")
    assert table.columns == Columns(path="file", class_name="level")


def test_group_and_split_are_found_by_their_names(tmp_path: Path) -> None:
    table = read(tmp_path, "file,label,Group,subset,width\nbatch0/0.png,ant,g,Training,64\n")
    assert table.columns == Columns(path="file", class_name="label", group="Group", split="subset")
    assert table.unused == ("width",)
    assert (table.rows[0].group, table.rows[0].split) == ("g", "Training")


def test_a_column_called_set_that_holds_no_splits_is_not_used(tmp_path: Path) -> None:
    table = read(tmp_path, "file,label,set\nbatch0/0.png,ant,monday\n")
    assert (table.columns.split, table.unused) == ("", ("set",))


@pytest.mark.parametrize("class_name", ["breed", "BREED", "3"])
def test_columns_can_be_named_by_header_in_any_case_or_by_number(tmp_path: Path, class_name: str) -> None:
    table = read(tmp_path, "file,age,breed\nbatch0/0.png,3,ant\n", class_name=class_name)
    assert labels(table) == {"batch0/0.png": "ant"}


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        (
            "file,age,breed\nbatch0/0.png,3,ant\n",
            {},
            "which of age, breed is the class is not said; next: --class-column age",
        ),
        ("file,label,category\nbatch0/0.png,3,ant\n", {}, "which of label, category is the class is not said"),
        ("id,label\nnone.png,ant\n", {}, "no column of labels.csv names pictures: it has the columns id, label"),
        (
            "file,label\nbatch0/0.png,ant\n",
            {"class_name": "kind"},
            "labels.csv has no column 'kind'; it has file, label",
        ),
    ],
)
def test_what_is_in_doubt_is_asked_for(tmp_path: Path, content: str, asked: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content, "labels.csv", *PICTURES, **asked)


def test_a_table_of_something_else_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnknownColumnsError, match="next: name its columns with --path-column and --class-column"):
        read(tmp_path, "name,licence\nsomebody,CC0\n")


def test_a_table_that_is_not_utf8_names_the_command_that_helps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="next: iconv -f WINDOWS-1252 -t UTF-8"):
        read(tmp_path, b"path,class\nbatch0/0.png," + b"caf\xe9\n")


def test_a_name_that_several_pictures_have_gives_all_of_them() -> None:
    assert [file.id for file in pictures(*PICTURES).find("0.png")] == ["batch0/0.png", "batch1/0.png"]
    assert [file.id for file in pictures(*PICTURES).find("BATCH1/0.PNG")] == ["batch1/0.png"]
    assert pictures(*PICTURES).find("../batch0/0.png") == ()
