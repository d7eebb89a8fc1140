"""Which column of a table is which."""

from pathlib import Path

import pytest

from kshot.errors import DataError, UnknownColumnsError
from kshot.ingest.columns import Columns
from kshot.ingest.tables import read_table
from tests.ingest.toy_tables import PICTURES, labels, pictures, read


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
    assert (table.rows[0].group, table.rows[0].split) == ("g", "meta_train")


@pytest.mark.parametrize(
    ("header", "values", "splits"),
    [
        ("Dataset", ("train", "val", "test"), ("meta_train", "meta_val", "meta_test")),
        ("Usage", ("Training", "PublicTest", "PrivateTest"), ("meta_train", "meta_test", "meta_test")),
        ("where", ("seg_train", "seg_test"), ("meta_train", "meta_test")),
        ("split", ("base", "val", "novel"), ("meta_train", "meta_val", "meta_test")),
        ("is_train", ("1", "0"), ("meta_train", "meta_test")),
        ("is_test", ("False", "True"), ("meta_train", "meta_test")),
        ("train", ("yes", "no"), ("meta_train", "meta_test")),
        ("is_val", ("1", "0"), ("meta_val", "meta_train")),
    ],
)
def test_a_column_that_says_splits_is_used_whatever_it_is_called(
    tmp_path: Path, header: str, values: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    names = [f"{number}.png" for number in range(len(values))]
    rows = "".join(f"{name},c{name},{value}\n" for name, value in zip(names, values, strict=True))
    table = read(tmp_path, f"file,label,{header}\n{rows}", "labels.csv", *names)
    assert table.columns.split == header
    assert tuple(row.split for row in table.rows) == splits


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        (
            "fold",
            ("0", "1"),
            "has a column 'fold', which may say the splits, and holds 0, 1; .*next: .*--split-by class",
        ),
        ("is_valid", ("1", "x"), "column 'is_valid', which may say the splits"),
        (
            "is_train,is_test",
            ("1,0", "0,1"),
            "columns is_train, is_test, which may each say the splits; needed one; next: --split-column is_train",
        ),
    ],
)
def test_a_column_that_may_say_splits_is_asked_about(
    tmp_path: Path, columns: str, cells: tuple[str, str], message: str
) -> None:
    text = f"file,label,{columns}\nbatch0/0.png,a,{cells[0]}\nbatch0/1.png,b,{cells[1]}\n"
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)
    known = read_table(tmp_path / "labels.csv", "labels.csv", pictures(*PICTURES), splits_are_known=True)
    assert [row.class_name for row in known.rows] == ["a", "b"]


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("0.0", "1.0"), ("False", "True")])
def test_of_a_column_for_each_class_the_one_that_is_1_is_the_class(tmp_path: Path, no: str, yes: str) -> None:
    kinds = ("MEL", "NV", "BCC")
    rows = [",".join([PICTURES[n], *(yes if m == n else no for m in range(3)), "61"]) for n in range(3)]
    table = read(tmp_path, f"image,{','.join(kinds)},age\n" + "\n".join(rows))
    assert tuple(row.class_name for row in table.rows) == kinds
    assert table.unused == ("age",)
    assert str(table) == "labels.csv (path in 'image', class in 'MEL, NV, BCC: which is 1')"


def test_columns_of_many_attributes_are_not_taken_for_classes(tmp_path: Path) -> None:
    text = "image,Male,Smiling\n" + "".join(f"{name},1,{n % 2}\n" for n, name in enumerate(PICTURES))
    with pytest.raises(DataError, match="which of Male, Smiling is the class is not said"):
        read(tmp_path, text)


def test_a_column_of_names_of_class_folders_is_the_class(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("0.png n01 0 62\n1.png n02 3 9\n")
    table = read_table(tmp_path / "val.txt", "val.txt", pictures("0.png", "1.png"), class_folders={"n01", "n02", "n03"})
    assert table.columns == Columns(path="1", class_name="2")


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


def test_a_header_that_is_the_name_of_a_picture_is_a_header(tmp_path: Path) -> None:
    table = read(tmp_path, "image,label\nother,a\n", "labels.csv", "image.png", "other.png")
    assert labels(table) == {"other": "a"}


def test_a_column_in_which_every_row_differs_is_not_taken_for_the_class(tmp_path: Path) -> None:
    names = [f"x/{number:03d}.jpg" for number in range(20)]
    rows = "".join(f"{number} {name}\n" for number, name in enumerate(names, start=1))
    assert read(tmp_path, rows, "images.txt", *names).columns == Columns(path="2")
