import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kshot.data.folders import read_tree
from kshot.data.names import Reason
from kshot.errors import DataError
from kshot.ingest.columns import Columns
from kshot.ingest.source import Reading, Source
from kshot.ingest.sources import check_class_names, nothing_usable, open_source


def lay(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, **how: object) -> Source:
    with open_source(path, Reading(**how)) as source:  # type: ignore[arg-type]
        return source


def rows(source: Source) -> list[tuple[str, str, str]]:
    return [(file.id, file.class_name, file.group) for file in source.files]


def test_a_folder_of_class_folders_is_read_in_order_of_id(tmp_path: Path) -> None:
    source = read(lay(tmp_path / "shop", "b/2.png", "b/1.png", "a/1.png"))
    assert source.name == "shop"
    assert rows(source) == [("a/1.png", "a", ""), ("b/1.png", "b", ""), ("b/2.png", "b", "")]


def test_group_folders_hold_class_folders(tmp_path: Path) -> None:
    source = read(lay(tmp_path / "shop", "metal/dent/1.png", "wood/dent/1.png"))
    assert rows(source) == [
        ("metal/dent/1.png", "metal/dent", "metal"),
        ("wood/dent/1.png", "wood/dent", "wood"),
    ]


def test_leavings_of_file_managers_are_ignored(tmp_path: Path) -> None:
    folder = lay(
        tmp_path / "shop", "a/1.png", "a/.DS_Store", "a/Thumbs.db", ".git/config", "__MACOSX/a/._1.png", "a/desktop.ini"
    )
    assert rows(read(folder)) == [("a/1.png", "a", "")]
    assert read(folder).refused == ()


def test_loose_pictures_and_empty_class_folders_are_listed_as_refused(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "a/1.png", "2.png", "notes.txt")
    (folder / "empty").mkdir()
    source = read(folder)
    assert {row.source: row.reason for row in source.refused} == {
        "empty": "the folder holds no picture",
        "2.png": "not in a class folder; needed class/picture or group/class/picture",
    }
    assert [(row.source, row.reason) for row in source.left_out] == [("notes.txt", Reason.NOTE)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("a/1.png", "a/more/1.png"),
            "'a' holds pictures, and so does the folder 'a/more' in it; needed class/picture",
        ),
        (("a/b/c/1.png", "a/1.png"), "'a/b/c' is a folder 3 levels down that holds pictures"),
        (
            ("GTSRB/Final_Training/Images/00000/1.ppm", "GTSRB/Final_Training/Images/00001/1.ppm"),
            "the class folders lie 4 levels down, in 'GTSRB/Final_Training/Images' alone; .* next: give that folder",
        ),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(lay(tmp_path / "shop", *names))


def test_names_are_brought_to_one_unicode_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Köln/größe.png")
    source = read(lay(tmp_path / "shop", decomposed))
    assert rows(source) == [("Köln/größe.png", "Köln", "")]
    assert source.files[0].path.read_bytes() == b"x"


def test_files_that_differ_only_in_unicode_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a/é\.png' occurs twice"):
        read(lay(tmp_path / "shop", "a/\u00e9.png", "a/e\u0301.png"))


@pytest.mark.parametrize("names", [("Crack", "crack"), ("stra\u00dfe", "STRASSE"), ("\u00c9", "e\u0301")])
def test_class_names_that_look_alike_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="differ only in case or spelling of accents; .*next: rename one"):
        check_class_names(names)


def test_of_class_names_that_look_alike_a_file_of_each_is_named() -> None:
    with pytest.raises(DataError, match=r"classes 'Crack' \(Crack/1.png\) and 'crack' \(train/crack/2.png\) differ"):
        check_class_names(["Crack", "crack"], {"Crack": "Crack/1.png", "crack": "train/crack/2.png"})


def test_class_names_with_control_characters_are_refused_and_shown_harmlessly() -> None:
    with pytest.raises(DataError, match=r"'red\\x1b\[31m' has control characters"):
        check_class_names(["red\x1b[31m"])


def test_right_to_left_and_emoji_names_are_kept(tmp_path: Path) -> None:
    source = read(lay(tmp_path / "shop", "שלום/1.png", "👩‍💻/1.png"))
    check_class_names(file.class_name for file in source.files)
    assert {file.class_name for file in source.files} == {"שלום", "👩‍💻"}


def test_a_csv_gives_class_group_and_split(tmp_path: Path) -> None:
    lay(tmp_path, "images/1.png", "images/2.png")
    path = table(
        tmp_path / "labels.csv",
        'path,class,group,split\nimages/2.png,dent,metal,train\nimages/1.png,"knot, small",wood,meta_test\n',
    )
    source = read(path)
    assert source.name == "labels.csv"
    assert rows(source) == [("images/1.png", "knot, small", "wood"), ("images/2.png", "dent", "metal")]
    assert source.given_splits == {"dent": "meta_train", "knot, small": "meta_test"}


def test_a_csv_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    lay(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_bytes("\ufeffpath, class, remark\r\n1.png, dent , old\r\n\r\n".encode())
    assert rows(read(tmp_path / "labels.csv")) == [("1.png", "dent", "")]


def test_a_csv_at_the_top_of_a_folder_takes_the_place_of_its_layout(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "deep/er/still/1.png")
    table(folder / "labels.csv", "path,class\ndeep/er/still/1.png,dent\n")
    assert rows(read(folder)) == [("deep/er/still/1.png", "dent", "")]


def three_tables(folder: Path, header: str = "filename,label") -> Path:
    """One folder of pictures, and a table for each split, of classes of its own."""
    for split, classes in (("train", "ab"), ("val", "c"), ("test", "de")):
        lay(folder, *(f"images/{name}{number}.jpg" for name in classes for number in range(2)))
        lines = [f"{name}{number}.jpg,{name}" for name in classes for number in range(2)]
        table(folder / f"{split}.csv", "\n".join([header, *lines]))
    return folder


def test_tables_that_are_named_as_splits_are_the_splits(tmp_path: Path) -> None:
    source = read(three_tables(tmp_path / "mini"))
    assert rows(source)[0] == ("images/a0.jpg", "a", "")
    assert source.given_splits == dict(zip("abcde", ["meta_train"] * 2 + ["meta_val"] + ["meta_test"] * 2, strict=True))


def test_one_of_several_tables_says_that_the_others_are_not_read(tmp_path: Path) -> None:
    source = read(three_tables(tmp_path / "mini") / "train.csv")
    assert {file.class_name for file in source.files} == {"a", "b"}
    assert source.given_splits == {}
    assert "not read: 'test.csv', 'val.csv' beside it; to read several tables, give their folder" in source.remarks
    assert any("6 other pictures lie in" in remark for remark in source.remarks)


def test_tables_in_folders_that_are_named_as_splits_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    for split, name in (("train", "a"), ("test", "b")):
        lay(folder / split, "1.png", "2.png")
        table(folder / split / "metadata.csv", f"file_name,label\n1.png,{name}\n2.png,{name}\n")
    source = read(folder)
    assert rows(source)[0] == ("test/1.png", "b", "")
    assert source.given_splits == {"a": "meta_train", "b": "meta_test"}


def test_lists_of_pictures_give_the_splits_of_class_folders(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "images/a/1.png", "images/b/1.png", "images/c/1.png")
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        table(folder / f"{split}.txt", "a/1.png\n".replace("a", name))
    source = read(folder)
    assert rows(source) == [(f"images/{name}/1.png", name, "") for name in "abc"]
    assert source.given_splits == {"a": "meta_train", "b": "meta_val", "c": "meta_test"}


def test_several_tables_that_are_no_splits_are_refused_by_name(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "1.png", "2.png")
    for name in ("train", "sample_submission"):
        table(folder / f"{name}.csv", "id,label\n1,a\n2,b\n")
    with pytest.raises(
        DataError, match=r"2 tables of labels, 'sample_submission.csv', 'train.csv'.*next: give the table"
    ):
        read(folder)
    assert len(read(folder / "train.csv").files) == 2


def test_a_list_of_pictures_without_labels_is_named_and_its_pictures_are_left_out(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "train_images/1.png", "test_images/2.png")
    table(folder / "train.csv", "id,label\n1,a\n")
    table(folder / "test.csv", "id\n2\n")
    source = read(folder)
    assert rows(source) == [("train_images/1.png", "a", "")]
    assert source.remarks == ("not read: test.csv gives no class",)
    assert [(row.source, row.reason) for row in source.left_out if row.reason is Reason.UNLISTED] == [
        ("test_images/2.png", Reason.UNLISTED)
    ]


@pytest.mark.parametrize("name", ["licences.csv", "labels.xlsx", "labels.parquet"])
def test_a_table_that_is_not_understood_stops_the_ingest_of_class_folders(tmp_path: Path, name: str) -> None:
    folder = lay(tmp_path / "shop", "a/1.png", "b/1.png")
    table(folder / name, "who,licence\nsomebody,CC0\n")
    with pytest.raises(DataError, match=rf"{name}.*next: .*--no-tables"):
        read(folder)
    assert len(read(folder, tables=False).files) == 2


def test_a_json_file_that_names_pictures_may_hold_labels_and_another_does_not(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "a/1.png", "b/1.png")
    table(folder / "licence.json", '{"licence": "CC0"}')
    assert len(read(folder).files) == 2
    table(folder / "labels.json", '{"1.png": "a"}')
    with pytest.raises(DataError, match="labels.json may hold labels, and is not read; needed a CSV"):
        read(folder)


@pytest.mark.parametrize("name", ["bad.csv", "notes.txt"])
def test_a_remark_on_a_few_pictures_does_not_replace_class_folders(tmp_path: Path, name: str) -> None:
    folder = lay(tmp_path / "shop", *(f"{kind}/{number}.png" for kind in "ab" for number in range(3)))
    table(folder / name, "a/1.png,blurred\n".replace(",", " " if name.endswith("txt") else ","))
    with pytest.raises(
        DataError,
        match=f"{name} names 1 of 6 pictures, which lie in class folders; .*next: .*--no-tables",
    ):
        read(folder)
    assert len(read(folder, tables=False).files) == 6
    assert rows(read(folder, columns=Columns(class_name="2"))) == [("a/1.png", "blurred", "")]


def test_a_list_of_classes_beside_their_folders_gives_the_splits(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", *(f"{kind}/1.png" for kind in "abc"))
    table(folder / "splits.csv", "class,split\na,train\nb,valid\nc,test\n")
    source = read(folder)
    assert source.given_splits == {"a": "meta_train", "b": "meta_val", "c": "meta_test"}
    assert read(folder, draw_splits=True).given_splits == {}


@pytest.mark.parametrize("text", ["1.png is blurred\nand so are\n others, too", "see 1.png\n", "Made by somebody.\n"])
def test_notes_that_speak_of_pictures_are_no_tables(tmp_path: Path, text: str) -> None:
    folder = lay(tmp_path / "shop", "a/1.png", "b/2.png", "b/3.png")
    table(folder / "notes.txt", text)
    if text.startswith("see"):
        with pytest.raises(DataError, match="names 1 of 3 pictures, which lie in class folders; needed one of both"):
            read(folder)
    else:
        assert len(read(folder).files) == 3


def test_annotations_of_one_split_do_not_replace_the_class_folders_of_another(tmp_path: Path) -> None:
    folder = lay(tmp_path / "tiny", *(f"train/{kind}/images/{n}.png" for kind in "abc" for n in range(3)))
    lay(folder, "val/images/v0.png", "val/images/v1.png")
    table(folder / "val" / "val_annotations.txt", "v0.png\td\t0\t62\nv1.png\te\t0\t62\n")
    with pytest.raises(DataError, match=r"which of 2, 3, 4 is the class is not said; next: --class-column 2"):
        read(folder)
    both = read(folder, columns=Columns(class_name="2"))
    assert {file.class_name: both.given_splits[file.class_name] for file in both.files} == {
        **dict.fromkeys("abc", "meta_train"),
        **dict.fromkeys("de", "meta_val"),
    }
    assert len(read(folder, tables=False).files) == 9


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "metadata.csv",
            "file_name,text\n" + "".join(f"{kind}/{n}.png,{n % 2} {kind}\n" for kind in "ab" for n in range(6)),
        ),
        ("info.csv", "file,width\n" + "".join(f"{kind}/{n}.png,{640 + n % 2}\n" for kind in "ab" for n in range(6))),
        ("quality.csv", "file,category\n" + "".join(f"{kind}/{n}.png,good\n" for kind in "ab" for n in range(6))),
        ("labels.csv", "".join(f"{kind}/{n}.png,day{n % 3}\n" for kind in "ab" for n in range(6))),
    ],
)
def test_a_table_of_something_else_does_not_replace_class_folders(tmp_path: Path, name: str, text: str) -> None:
    folder = lay(tmp_path / "shop", *(f"{kind}/{number}.png" for kind in "ab" for number in range(6)))
    table(folder / name, text)
    with pytest.raises(
        DataError, match=f"{name} says other classes than the folders.*--no-tables, or by the table with"
    ):
        read(folder)
    assert {file.class_name for file in read(folder, tables=False).files} == {"a", "b"}


def test_a_table_of_path_and_class_goes_before_folders_and_so_does_one_that_says_the_same(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", *(f"day{n}/{kind}.png" for kind in "ab" for n in range(3)))
    table(
        folder / "labels.csv",
        "Path;Class\n" + "".join(f"day{n}/{kind}.png;{kind}\n" for kind in "ab" for n in range(3)),
    )
    assert {file.class_name for file in read(folder).files} == {"a", "b"}
    words = lay(tmp_path / "words", *(f"n0{n}/{k}.png" for n in range(3) for k in range(2)))
    table(
        words / "names.csv", "file,label\n" + "".join(f"n0{n}/{k}.png,word {n}\n" for n in range(3) for k in range(2))
    )
    assert {file.class_name for file in read(words).files} == {"word 0", "word 1", "word 2"}


def test_a_missing_picture_of_one_split_is_not_found_in_another(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "train/1.png", "train/2.png", "test/3.png", "test/4.png")
    table(folder / "train" / "metadata.csv", "file_name,label\n1.png,cat\n2.png,cat\n3.png,cat\n")
    source = read(folder)
    assert [file.id for file in source.files] == ["train/1.png", "train/2.png"]
    assert [(row.source, row.reason) for row in source.refused] == [("3.png", "no such file")]


def test_a_text_of_uneven_rows_that_name_pictures_is_refused(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", *(f"cam{n}/{n}.png" for n in range(3)))
    table(folder / "labels.txt", "0.png cat\n1.png golden retriever\n2.png cat\n")
    with pytest.raises(DataError, match="labels.txt line 2: found 3 columns; needed 2"):
        read(folder)


def test_a_zip_of_one_split_keeps_it(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "test/u/1.png", "test/v/1.png")
    assert read(pack_zip(folder, tmp_path / "more.zip")).given_splits == {"u": "meta_test", "v": "meta_test"}


def test_tables_in_class_folders_are_annotations(tmp_path: Path) -> None:
    folder = lay(tmp_path / "signs", "00000/1.ppm", "00001/1.ppm")
    table(folder / "00000" / "GT-00000.csv", "Filename;Width;ClassId\n1.ppm;30;0\n")
    assert [file.class_name for file in read(folder).files] == ["00000", "00001"]


def test_the_columns_and_the_folder_of_the_pictures_can_be_given(tmp_path: Path) -> None:
    pictures = lay(tmp_path / "elsewhere", "1.png", "2.png")
    path = table(lay(tmp_path, "tables/other") / "tables" / "t.csv", "id,age,breed,part\n1,3,a,train\n2,4,b,test\n")
    source = read(path, pictures=pictures, columns=Columns(class_name="breed", split="part"))
    assert rows(source) == [("1.png", "a", ""), ("2.png", "b", "")]
    assert source.given_splits == {"a": "meta_train", "b": "meta_test"}


def test_a_name_that_several_pictures_have_is_refused_and_not_guessed(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "left/1.png", "right/1.png", "left/2.png", "right/2.png")
    with pytest.raises(DataError, match=r"line 2: '1' may be left/1.png, right/1.png; needed one.*--images-in"):
        read(table(folder / "labels.csv", "id,label\n1,a\n2,b\n"))
    assert rows(read(folder / "labels.csv", pictures=folder / "left")) == [("1.png", "a", ""), ("2.png", "b", "")]


def test_a_class_in_several_splits_is_refused_and_pooled_when_asked(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "train/a/1.png", "test/a/1.png", "train/b/1.png", "test/b/1.png")
    with pytest.raises(DataError, match=r"class 'a' is in meta_t.* and in meta_t.*next: add --split-by class"):
        read(folder)
    pooled = read(folder, draw_splits=True)
    assert rows(pooled)[0] == ("test/a/1.png", "a", "")
    assert (len(pooled.files), pooled.given_splits) == (4, {})


def test_rows_that_repeat_another_count_once(tmp_path: Path) -> None:
    lay(tmp_path, "1.png")
    source = read(table(tmp_path / "boxes.csv", "path,class,x\n1.png,a,3\n1.png,a,9\n"))
    assert len(source.files) == 1
    assert "1 row repeats another, and counts once" in source.remarks


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"columns": Columns(class_name="label")},
            "columns or --images-in are given, and shop has no table at its top",
        ),
        ({"names": "gbk"}, "--names is the encoding of names in an archive"),
    ],
)
def test_what_is_said_of_a_source_in_vain_is_refused(tmp_path: Path, how: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(lay(tmp_path / "shop", "a/1.png"), **how)


def test_masks_and_annotations_beside_pictures_are_left_out_and_counted_unless_they_are_wanted(tmp_path: Path) -> None:
    folder = lay(tmp_path / "tiles", *(f"blow/{n}.{kind}" for n in range(3) for kind in ("jpg", "png", "xml")))
    source = read(folder)
    assert [file.id for file in source.files] == ["blow/0.jpg", "blow/1.jpg", "blow/2.jpg"]
    assert Counter(row.reason for row in source.left_out) == {Reason.MASK: 3, Reason.NOTE: 3}
    assert len(read(folder, keep_masks=True).files) == 6


def test_files_that_a_csv_names_in_vain_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, "1.png")
    source = read(table(tmp_path / "labels.csv", "path,class\n1.png,a\n2.png,a\n"))
    assert [(row.source, row.reason) for row in source.refused] == [("2.png", "no such file")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.csv is empty"),
        ("path,class\n1.png\n", "line 2: found 1 column; needed 2.* next: mend that line"),
        ("path,path\n1.png,2.png\n", "has two columns 'path'"),
        (
            "path,class\n/etc/passwd,a\n",
            "no column of labels.csv names pictures: it has the columns path, class, the first",
        ),
        ("path,class\n1.png,a\n1.png,b\n", "line 3: '1.png' is of class 'b', and of 'a' in labels.csv line 2"),
        ("path,class,split\n1.png,a,maybe\n", "line 2: found split 'maybe'"),
        (
            "path,class,split\n1.png,a,train\n2.png,a,val\n",
            "line 3: class 'a' is in meta_train and in meta_val.*next: add --split-by class",
        ),
        ("path,breed,age\n1.png,a,3\n", "which of breed, age is the class is not said; next: --class-column breed"),
    ],
)
def test_a_wrong_csv_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    lay(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=message):
        read(table(tmp_path / "labels.csv", text))


def test_rows_without_a_class_and_rows_that_lead_outside_are_refused_one_by_one(tmp_path: Path) -> None:
    lay(tmp_path, "1.png", "2.png")
    source = read(table(tmp_path / "labels.csv", "path,class\n1.png,a\n2.png,\n../1.png,b\n,a\n1.png,\n"))
    assert [file.id for file in source.files] == ["1.png"]
    assert {row.source: row.reason for row in source.refused} == {
        "2.png": "its row names no class",
        "../1.png": "leads out of the source",
        "labels.csv line 5": "names no picture",
    }
    assert "1 row repeats another, and counts once" in source.remarks


def test_a_path_that_goes_up_and_stays_in_the_source_is_read(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "val/x/1.png", "val/x/2.png", "train/3.png")
    table(folder / "val" / "labels.csv", "path,class\n../val/x/1.png,a\nx/../x/2.png,b\n../../val/x/1.png,c\n")
    source = read(folder)
    assert {file.id: file.class_name for file in source.files} == {"val/x/1.png": "a", "val/x/2.png": "b"}
    assert [(row.source, row.reason) for row in source.refused] == [("../../val/x/1.png", "leads out of the source")]


def test_a_list_in_a_folder_of_annotations_says_the_classes_and_masks_there_are_none_of_its_pictures(
    tmp_path: Path,
) -> None:
    folder = lay(tmp_path / "pets", *(f"images/cat_{n}.jpg" for n in range(4)))
    lay(folder, *(f"annotations/trimaps/cat_{n}.png" for n in range(4)))
    table(folder / "annotations" / "list.txt", "#Image ID\n" + "".join(f"cat_{n} {n % 2}\n" for n in range(4)))
    source = read(folder)
    assert {file.id: file.class_name for file in source.files} == {f"images/cat_{n}.jpg": str(n % 2) for n in range(4)}


def test_lists_of_splits_in_a_folder_of_their_own_are_read_beside_class_folders(tmp_path: Path) -> None:
    folder = lay(tmp_path / "food", *(f"images/{kind}/{n}.jpg" for kind in "abc" for n in range(2)))
    (folder / "meta").mkdir()
    for split, kinds in (("train", "a"), ("val", "b"), ("test", "c")):
        table(folder / "meta" / f"{split}.txt", "".join(f"{kind}/{n}\n" for kind in kinds for n in range(2)))
        (folder / "meta" / f"{split}.json").write_text('["a/0"]')
    source = read(folder)
    assert source.given_splits == {"a": "meta_train", "b": "meta_val", "c": "meta_test"}


def test_folders_that_labelme_exports_are_annotations(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", *(f"{kind}/{n}.jpg" for kind in "ab" for n in range(2)))
    lay(folder, "a/0.json", "a/0_json/img.png", "a/0_json/label.png", "b/other_json/1.png")
    tree = read_tree(folder)
    assert [row.source for row in tree.left_out] == ["a/0.json", "a/0_json/img.png", "a/0_json/label.png"]
    assert "b/other_json/1.png" in [file.id for file in tree.files]


@pytest.mark.parametrize(
    "names", [("JPEGImages/1.jpg", "JPEGImages/2.jpg"), ("images/train/1.jpg", "images/val/1.jpg")]
)
def test_pictures_without_a_class_are_refused_with_a_way_that_works(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = lay(tmp_path / "shop", *names)
    with pytest.raises(DataError, match="no class folder; .*next: .* or write a table of path,class into shop"):
        read(folder)
    table(folder / "labels.csv", "path,class\n" + "".join(f"{name},c{n}\n" for n, name in enumerate(names)))
    assert [file.class_name for file in read(folder).files] == ["c0", "c1"]


def test_a_folder_of_archives_says_which_to_unpack(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "a.zip", "b.zip")
    with pytest.raises(DataError, match=r"and beside them 2 archives; needed .*next: unpack a\.zip, or give it as the"):
        raise DataError(nothing_usable(read(folder), ()))


def test_a_csv_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"path,class\n\xff\xfe,a\n")
    with pytest.raises(DataError, match="cannot be read as a CSV in UTF-8"):
        read(tmp_path / "labels.csv")


def pack_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def pack_tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, ".")
    return path


@pytest.mark.parametrize(("pack", "suffix"), [(pack_zip, "zip"), (pack_tar, "tar.gz")])
@pytest.mark.parametrize("wrapper", ["", "shop/"])
def test_an_archive_is_read_as_the_folder_in_it(
    tmp_path: Path, pack: Callable[[Path, Path], Path], suffix: str, wrapper: str
) -> None:
    folder = lay(tmp_path / "shop", f"{wrapper}a/1.png", f"{wrapper}b/1.png")
    source = read(pack(folder, tmp_path / f"monday.{suffix}"))
    assert source.name == f"monday.{suffix}"
    assert rows(source) == [("a/1.png", "a", ""), ("b/1.png", "b", "")]


def test_a_single_group_in_an_archive_stays_a_group(tmp_path: Path) -> None:
    grouped = lay(tmp_path / "one", "shop/metal/dent/1.png", "shop/metal/hole/1.png")
    assert {file.group for file in read(pack_zip(grouped, tmp_path / "one.zip")).files} == {"metal"}


def test_an_archive_may_hold_a_csv(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "shop/images/1.png")
    table(folder / "shop" / "labels.csv", "path,class\nimages/1.png,dent\n")
    assert rows(read(pack_zip(folder, tmp_path / "shop.zip"))) == [("images/1.png", "dent", "")]


def test_the_files_of_an_archive_exist_as_long_as_the_source_is_open(tmp_path: Path) -> None:
    path = pack_zip(lay(tmp_path / "shop", "a/1.png"), tmp_path / "shop.zip")
    with open_source(path) as source:
        extracted = source.files[0].path
        assert extracted.read_bytes() == b"x"
    assert not extracted.exists()


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is a \.rar file; needed a folder of class folders"):
        read(lay(tmp_path, "shop.rar") / "shop.rar")
