import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot.ingest.sources import Source, check_class_names, open_source


def lay(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> Source:
    with open_source(path) as source:
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


def test_loose_files_and_empty_class_folders_are_listed_as_refused(tmp_path: Path) -> None:
    folder = lay(tmp_path / "shop", "a/1.png", "notes.txt")
    (folder / "empty").mkdir()
    refused = {row.source: row.reason for row in read(folder).refused}
    assert refused == {
        "empty": "the class folder holds no file",
        "notes.txt": "not in a class folder; needed class/file or group/class/file",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/1.png", "a/more/1.png"), "'a' holds files, such as '1.png', and folders, such as 'more'"),
        (("a/b/c/1.png",), "'a/b/c' is a folder three levels down"),
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
    with pytest.raises(DataError, match="differ only in case or spelling of accents; rename one"):
        check_class_names(names)


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


def test_files_that_a_csv_names_in_vain_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, "1.png")
    source = read(table(tmp_path / "labels.csv", "path,class\n1.png,a\n2.png,a\n"))
    assert [(row.source, row.reason) for row in source.refused] == [("2.png", "no such file")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\); needed path,class"),
        ("file,label\n1.png,a\n", "has the columns file, label; needed path,class"),
        ("path,class\n1.png\n", "line 2: found 1 columns; needed 2"),
        ("path,class\n1.png,\n", "line 2: the class is empty"),
        ("path,class\n/etc/passwd,a\n", "line 2: found path '/etc/passwd'; needed one relative"),
        ("path,class\n../1.png,a\n", r"line 2: found path '\.\./1\.png'"),
        ("path,class\n1.png,a\n1.png,b\n", r"'1\.png' occurs twice \(as 'a' and 'b'\)"),
        ("path,class,split\n1.png,a,maybe\n", "line 2: found split 'maybe'"),
        ("path,class,split\n1.png,a,train\n2.png,a,val\n", "line 3: class 'a' is in meta_train and in val"),
    ],
)
def test_a_wrong_csv_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    lay(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=message):
        read(table(tmp_path / "labels.csv", text))


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
