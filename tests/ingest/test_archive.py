import errno
import io
import os
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.data.folders import Refused
from kshot.data.names import is_system
from kshot.errors import DataError
from kshot.ingest import archive
from kshot.ingest.archive import extract

Members = dict[str, bytes]
Make = Callable[[Path, Members], Path]
GOOD: Members = {"a/1.png": b"one", "a/2.png": b"two" * 50_000, "b/ü.png": b""}


def make_zip(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def make_tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make_special_tar(path: Path, kind: bytes, link: str = "") -> Path:
    make_tar(path, {"a/1.png": b"one"})
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("a/special")
        info.type, info.linkname = kind, link
        file.addfile(info)
    return path


def make_special_zip(path: Path, mode: int, content: bytes = b"/etc/passwd") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/1.png", b"one")
        info = zipfile.ZipInfo("a/special")
        info.create_system, info.external_attr = 3, (mode | 0o644) << 16
        file.writestr(info, content)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "box" / "target"
    folder.mkdir(parents=True)
    return folder


def files_of(folder: Path) -> Members:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def taken(path: Path, target: Path) -> Members:
    """The files of an archive of which no member is refused."""
    assert extract(path, target) == ()
    return files_of(target)


def refused(path: Path, target: Path, message: str) -> None:
    """`path` is refused, and neither in nor outside the target is anything written."""
    before = sorted(target.parents[1].rglob("*"))
    with pytest.raises(DataError, match=message):
        extract(path, target)
    assert sorted(target.parents[1].rglob("*")) == before


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_kind_of_archive_is_extracted(tmp_path: Path, target: Path, suffix: str) -> None:
    path = tmp_path / f"good.{suffix}"
    if suffix == "zip":
        make_zip(path, GOOD)
    else:
        make_tar(path, GOOD, "w:" + suffix.partition(".")[2])
    assert archive.is_archive(path)
    assert taken(path, target) == GOOD


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "name",
    [
        *("../escape.png", "a/../../escape.png", "/escape.png", "a\\..\\escape.png", "C:/escape.png", ".."),
        *("..\\escape.png", "\\escape.png", "\\\\server\\share\\escape.png", "C:\\escape.png"),
    ],
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, target: Path, make: Make, name: str) -> None:
    refused(make(tmp_path / "evil", {"a/1.png": b"one", name: b"evil"}), target, "would be written outside")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_drive_letter_is_refused_and_a_colon_is_not(tmp_path: Path, target: Path, make: Make) -> None:
    for number, name in enumerate(("C:\\escape.png", "c:/escape.png")):
        refused(make(tmp_path / f"{number}", {name: b"evil"}), target, "begins with a drive letter")
    assert taken(make(tmp_path / "good", {"1: one/0.png": b"1", "a:b.png": b"2"}), target) == {
        "1: one/0.png": b"1",
        "a:b.png": b"2",
    }


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    ("name", "reason"), [("a/" + "x" * 256, "a part of over 255 bytes"), ("a/" + "y/" * 1500 + "1.png", "2048 bytes")]
)
def test_names_longer_than_a_file_system_takes_are_refused_one_by_one(
    tmp_path: Path, target: Path, make: Make, name: str, reason: str
) -> None:
    (row,) = extract(make(tmp_path / "long", {name: b"x", "a/1.png": b"one"}), target)
    assert row.source == name and reason in row.reason
    assert files_of(target) == {"a/1.png": b"one"}


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_a_folder_may_hold_are_extracted_as_they_are(tmp_path: Path, target: Path, make: Make) -> None:
    odd = dict.fromkeys(("a/\x1b[31mred.png", "a/new\nline.png", "Icon\r", "a/._1.png", "a/ 1.png "), b"x")
    twins = {"a/X.png": b"1", "a/x.png": b"2"}
    nested = {"a/more.zip": b"PK", "__MACOSX/a/._1.png": b"x", "b/Thumbs.db": b"x"}
    assert taken(make(tmp_path / "odd", odd | twins | nested), target) == odd | twins | nested


@pytest.mark.parametrize(
    ("kind", "link", "reason"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "a link that leads outside the archive"),
        (tarfile.SYMTYPE, "../../1.png", "a link that leads outside the archive"),
        (tarfile.LNKTYPE, "../a/1.png", "a link that leads outside the archive"),
        (tarfile.SYMTYPE, "a/1.png", "a link to nothing in the archive"),
        (tarfile.SYMTYPE, "special", "a link to nothing in the archive"),
        (tarfile.LNKTYPE, "1.png", "a link to nothing in the archive"),
        (tarfile.SYMTYPE, ".", "a link to a folder"),
        (tarfile.CHRTYPE, "", "a device or a pipe"),
        (tarfile.BLKTYPE, "", "a device or a pipe"),
        (tarfile.FIFOTYPE, "", "a device or a pipe"),
    ],
)
def test_links_to_no_member_and_devices_in_a_tar_are_refused_one_by_one(
    tmp_path: Path, target: Path, kind: bytes, link: str, reason: str
) -> None:
    path = make_special_tar(tmp_path / "odd.tar", kind, link)
    assert extract(path, target) == (Refused(source="a/special", reason=reason),)
    assert files_of(target) == {"a/1.png": b"one"}


@pytest.mark.parametrize(
    ("kind", "link"),
    [(tarfile.SYMTYPE, "1.png"), (tarfile.SYMTYPE, "../a/./1.png"), (tarfile.LNKTYPE, "a/1.png")],
)
def test_a_link_in_a_tar_to_one_of_its_files_is_that_file(tmp_path: Path, target: Path, kind: bytes, link: str) -> None:
    path = make_special_tar(tmp_path / "links.tar", kind, link)
    assert taken(path, target) == {"a/1.png": b"one", "a/special": b"one"}
    assert not (target / "a" / "special").is_symlink()


def test_a_chain_of_links_is_followed_to_its_file_and_a_circle_is_refused(tmp_path: Path, target: Path) -> None:
    path = make_tar(tmp_path / "links.tar", {"a/1.png": b"one"})
    with tarfile.open(path, "a") as file:
        for name, link in {"b/2.png": "3.png", "b/3.png": "../a/1.png", "c/4.png": "5.png", "c/5.png": "4.png"}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, link
            file.addfile(info)
    assert [row.source for row in extract(path, target)] == ["c/4.png", "c/5.png"]
    assert files_of(target) == {"a/1.png": b"one", "b/2.png": b"one", "b/3.png": b"one"}


def test_a_tar_of_a_folder_with_hard_links_holds_all_of_its_files(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"one")
    os.link(folder / "1.png", folder / "same.png")
    with tarfile.open(tmp_path / "hard.tar.gz", "w:gz") as file:
        file.add(folder, "parts")
    assert taken(tmp_path / "hard.tar.gz", target) == {"parts/1.png": b"one", "parts/same.png": b"one"}


@pytest.mark.parametrize(
    ("mode", "content", "reason"),
    [
        (stat.S_IFLNK, b"/etc/passwd", "a link that leads outside the archive"),
        (stat.S_IFLNK, b"none.png", "a link to nothing in the archive"),
        (stat.S_IFCHR, b"", "a device or a pipe"),
        (stat.S_IFIFO, b"", "a device or a pipe"),
    ],
)
def test_links_to_no_member_and_devices_in_a_zip_are_refused_one_by_one(
    tmp_path: Path, target: Path, mode: int, content: bytes, reason: str
) -> None:
    path = make_special_zip(tmp_path / "odd.zip", mode, content)
    assert extract(path, target) == (Refused(source="a/special", reason=reason),)
    assert files_of(target) == {"a/1.png": b"one"}


def test_a_link_in_a_zip_to_one_of_its_files_is_that_file(tmp_path: Path, target: Path) -> None:
    path = make_special_zip(tmp_path / "links.zip", stat.S_IFLNK, b"1.png")
    assert taken(path, target) == {"a/1.png": b"one", "a/special": b"one"}


def test_links_and_devices_among_files_of_the_system_are_not_listed(tmp_path: Path, target: Path) -> None:
    path = make_tar(tmp_path / "hidden.tar", {"a/1.png": b"one"})
    with tarfile.open(path, "a") as file:
        for kind in (tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f".cache/{kind.decode()}")
            info.type, info.linkname = kind, "/usr/bin/python"
            file.addfile(info)
    assert taken(path, target) == {"a/1.png": b"one"}


def test_many_links_to_a_large_file_are_refused_as_a_bomb(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1_000_000)
    path = make_tar(tmp_path / "links.tar", {"a/1.png": bytes(300_000)})
    with tarfile.open(path, "a") as file:
        for number in range(4):
            info = tarfile.TarInfo(f"a/link{number}.png")
            info.type, info.linkname = tarfile.LNKTYPE, "a/1.png"
            file.addfile(info)
    refused(path, target, "extracts to more than 1000000 bytes")


def test_a_link_is_copied_where_the_file_system_has_no_hard_links(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", not_here)
    path = make_special_tar(tmp_path / "links.tar", tarfile.LNKTYPE, "a/1.png")
    assert taken(path, target) == {"a/1.png": b"one", "a/special": b"one"}


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, target: Path) -> None:
    twice = tmp_path / "twice.tar"
    make_tar(twice, {"a/1.png": b"one"})
    with tarfile.open(twice, "a") as file:
        file.addfile(tarfile.TarInfo("./a/1.png"))
    refused(twice, target, "occurs twice")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        warnings.simplefilter("ignore")  # zipfile warns of the second
        file.writestr("a/1.png", b"one")
        file.writestr("a/1.png", b"two")
    refused(tmp_path / "twice.zip", target, "occurs twice")


def test_names_that_differ_only_in_unicode_form_are_one_name(tmp_path: Path, target: Path) -> None:
    refused(make_tar(tmp_path / "twins.tar", {"a/\u00e9.png": b"1", "a/e\u0301.png": b"2"}), target, "occurs twice")


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path, target: Path) -> None:
    refused(make_tar(tmp_path / "clash.tar", {"a": b"1", "a/b": b"2"}), target, "both a file and a folder")


def test_an_encrypted_member_is_refused(tmp_path: Path, target: Path) -> None:
    path = make_zip(tmp_path / "secret.zip", {"a/1.png": b"one"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, target, "is encrypted")


def test_too_many_members_are_refused(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    many = {f"a/{number}.png": b"" for number in range(21)}
    refused(make_zip(tmp_path / "many.zip", many), target, "more than 20 members")
    refused(make_tar(tmp_path / "many.tar", many), target, "more than 20 members")
    folders = tmp_path / "folders.tar"
    with tarfile.open(folders, "w") as file:
        for number in range(21):
            info = tarfile.TarInfo(f"f{number}")
            info.type = tarfile.DIRTYPE
            file.addfile(info)
    refused(folders, target, "more than 20 members")


def test_more_than_the_allowed_bytes_are_refused(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 100_000)
    refused(make_tar(tmp_path / "big.tar", GOOD), target, "extracts to more than 100000 bytes")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.xz"])
def test_a_bomb_is_refused_by_its_ratio(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(archive, "_RATIO_FROM_BYTES", 2**20)
    path, zeros = tmp_path / f"bomb.{suffix}", {"a/zeros.png": bytes(4 * 2**20)}
    if suffix == "zip":
        make_zip(path, zeros)
    else:
        make_tar(path, zeros, "w:" + suffix.partition(".")[2])
    refused(path, target, "more than 200 times its")


def test_a_tar_header_that_asks_for_a_gigabyte_is_refused(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "pax.tar"
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    refused(path, target, "a header of 1073741824 bytes")


@pytest.mark.parametrize("name", ["good.zip", "good.tar.gz", "good.tar.xz", "good.tar"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7])
def test_a_truncated_archive_is_refused(tmp_path: Path, target: Path, name: str, part: float) -> None:
    path = tmp_path / name
    members = {f"a/{number}.png": bytes([number]) * 3000 for number in range(20)}
    if name.endswith("zip"):
        make_zip(path, members)
    else:
        make_tar(path, members, "w:" + name.partition(".tar")[2].removeprefix("."))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match="damaged or"):
        extract(path, target)


def test_a_member_with_a_wrong_checksum_is_refused(tmp_path: Path, target: Path) -> None:
    path = make_zip(tmp_path / "bad.zip", {"a/1.png": b"one" * 100})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 16] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        extract(path, target)


def make_old_zip(path: Path, page: str, members: Members, *, repeated: bool = False) -> Path:
    """As an older program writes it: with names in a code page that it does not name."""

    class Old(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 (zipfile's name)
            return self.filename.encode(page), self.flag_bits & ~0x800

    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            info = Old("x")
            info.filename = name
            if repeated:
                field = struct.pack("<BI", 1, zlib.crc32(name.encode(page))) + name.encode()
                info.extra = struct.pack("<HH2sHH", 0xCAFE, 2, b"ab", 0x7075, len(field)) + field
            file.writestr(info, content)
    return path


PARTS: Members = {"零件/螺栓/0.png": b"1", "零件/螺母/0.png": b"2"}


def test_names_in_an_unnamed_code_page_are_refused_with_how_they_may_read(tmp_path: Path, target: Path) -> None:
    path = make_old_zip(tmp_path / "gbk.zip", "gbk", PARTS)
    refused(
        path, target, r"gbk\.zip has a member name that is not UTF-8, .*next: add --names and .*: gbk reads 零件/螺栓"
    )


@pytest.mark.parametrize(
    ("page", "members"),
    [
        ("gbk", PARTS),
        ("shift_jis", {"部品/表/ソ能.png": b"1"}),  # the second byte of two of them is that of a backslash
        ("cp437", {"Schrauben/größe.png": b"1"}),
        ("cp1251", {"болты/1.png": b"1"}),
    ],
)
def test_names_are_read_in_the_code_page_that_is_given(
    tmp_path: Path, target: Path, page: str, members: Members
) -> None:
    path = make_old_zip(tmp_path / "old.zip", page, members)
    assert extract(path, target, names=page) == ()
    assert files_of(target) == members


def test_a_code_page_that_does_not_fit_or_is_unknown_is_refused(tmp_path: Path, target: Path) -> None:
    path = make_old_zip(tmp_path / "gbk.zip", "gbk", PARTS)
    for page, message in {
        "ascii": "a member name that is not ascii",
        "klingon": "found the code page 'klingon'",
        "rot13": "found the code page 'rot13'",
        "utf-16": "found the code page 'utf-16'",
    }.items():
        with pytest.raises(DataError, match=message):
            extract(path, target, names=page)
    assert files_of(target) == {}


def test_names_in_utf8_that_are_not_marked_as_such_are_read_as_utf8(tmp_path: Path, target: Path) -> None:
    assert taken(make_old_zip(tmp_path / "macos.zip", "utf-8", PARTS), target) == PARTS


def test_names_that_are_repeated_in_utf8_are_read_from_there(tmp_path: Path, target: Path) -> None:
    assert taken(make_old_zip(tmp_path / "info-zip.zip", "gbk", PARTS, repeated=True), target) == PARTS


def test_names_that_are_marked_as_utf8_are_not_read_in_the_given_code_page(tmp_path: Path, target: Path) -> None:
    assert extract(make_zip(tmp_path / "new.zip", PARTS), target, names="gbk") == ()
    assert files_of(target) == PARTS


def test_backslashes_in_a_zip_are_separators(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as file:
        for name, attributes in {"parts\\": 0, "parts\\nut": 0x10, "parts\\bolt\\0.png": 0x20}.items():
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.create_system, info.external_attr = 0, attributes
            file.writestr(info, b"one" if name.endswith("png") else b"")
    assert taken(tmp_path / "windows.zip", target) == {"parts/bolt/0.png": b"one"}


def test_a_name_that_a_backslash_and_a_slash_make_twice_is_refused(tmp_path: Path, target: Path) -> None:
    refused(make_zip(tmp_path / "twice.zip", {"a/1.png": b"1", "a\\1.png": b"2"}), target, "occurs twice")


def test_a_backslash_in_a_tar_is_a_letter(tmp_path: Path, target: Path) -> None:
    assert taken(make_tar(tmp_path / "letter.tar", {"a/b\\c.png": b"1"}), target) == {"a/b\\c.png": b"1"}


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_of_a_tar_that_is_not_utf8_is_refused_and_listed_escaped(
    tmp_path: Path, target: Path, layout: int
) -> None:
    path = tmp_path / "latin.tar"
    with tarfile.open(path, "w", format=layout, encoding="utf-8", errors="surrogateescape") as file:
        for name in ("a/caf\udce9.png", "caf\udce9/1.png", "a/1.png"):
            file.addfile(tarfile.TarInfo(name))
    listed = extract(path, target)
    assert [row.source for row in listed] == [r"a/caf\udce9.png", r"caf\udce9/1.png"]
    assert all(row.reason.startswith("its name is not UTF-8; --names") for row in listed)
    assert files_of(target) == {"a/1.png": b""}


def test_names_of_a_tar_are_read_in_the_code_page_that_is_given(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "latin.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        file.addfile(tarfile.TarInfo("café/1.png"))
    assert extract(path, target, names="latin-1") == ()
    assert files_of(target) == {"café/1.png": b""}


def test_a_zip64_is_extracted(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as file, file.open("a/1.png", "w", force_zip64=True) as member:
        member.write(b"one")
    assert taken(tmp_path / "large.zip", target) == {"a/1.png": b"one"}


def test_a_tar_that_ends_with_a_zip_is_the_tar(tmp_path: Path, target: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"wrong.png": b"1"}).read_bytes()
    path = make_tar(tmp_path / "outer.tar", {"a/1.png": b"one", "a/inner.zip": inner})
    assert taken(path, target) == {"a/1.png": b"one", "a/inner.zip": inner}


@pytest.mark.parametrize(
    ("start", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07", "RAR"), (b"\x28\xb5\x2f\xfd", "Zstandard")]
)
def test_an_archive_of_another_kind_is_named_whatever_its_name_says(
    tmp_path: Path, target: Path, start: bytes, kind: str
) -> None:
    (tmp_path / "renamed.zip").write_bytes(start + bytes(1000))
    refused(
        tmp_path / "renamed.zip", target, f"is a {kind} archive by its content; needed a zip or a tar; next: unpack"
    )


def test_a_failure_of_the_disk_is_not_called_damage(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_write", full)
    with pytest.raises(DataError, match=r"good\.zip cannot be extracted to .*: No space left on device"):
        extract(make_zip(tmp_path / "good.zip", GOOD), target)


def test_a_name_that_is_marked_as_utf8_and_is_not_is_named_as_the_fault(tmp_path: Path, target: Path) -> None:
    path = make_zip(tmp_path / "wrong.zip", {"größe.png": b"1"})
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xf6o"))
    refused(path, target, "a member name that is marked as UTF-8 and is not; next: unpack")


def test_the_label_and_the_folders_of_a_gnu_tar_are_no_devices(tmp_path: Path, target: Path) -> None:
    path = make_tar(tmp_path / "backup.tar", {"a/1.png": b"one"})
    with tarfile.open(path, "a") as file:
        for kind, name in ((b"V", "backup of 2026"), (b"D", "a/")):
            info = tarfile.TarInfo(name)
            info.type = kind
            file.addfile(info)
    assert taken(path, target) == {"a/1.png": b"one"}


PART = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    st.sampled_from(["..", ".", "", "C:", "a\\..", "\\", "x" * 300, "Thumbs.db", "a"]),
)
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join).filter(bool)


@given(st.dictionaries(NAME, st.binary(max_size=3), min_size=1, max_size=4), st.sampled_from([make_zip, make_tar]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_members_of_any_name_each_is_extracted_or_refused_and_none_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, members: Members, make: Make
) -> None:
    box = tmp_path_factory.mktemp("box")
    target = box / "deep" / "target"
    target.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that occur twice
        path = make(box / "any", members)
    try:
        listed = extract(path, target)
    except DataError:
        assert files_of(target) == {}
    else:
        parts = {name: name.replace("\\", "/").split("/") for name in members}
        uncounted = sum(not named[-1] or any(map(is_system, named)) for named in parts.values())
        assert len(members) - uncounted <= len(files_of(target)) + len(listed) <= len(members)
    assert sorted(item.name for item in box.iterdir()) == ["any", "deep"]
    assert [item.name for item in (box / "deep").iterdir()] == ["target"]
