import io
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot.ingest import archive
from kshot.ingest.archive import extract

Members = dict[str, bytes]
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
    extract(path, target)
    assert {str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()} == GOOD


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "name", ["../escape.png", "a/../../escape.png", "/escape.png", "a\\..\\escape.png", "C:/escape.png", ".."]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, target: Path, make: object, name: str) -> None:
    assert callable(make)
    refused(make(tmp_path / "evil", {"a/1.png": b"one", name: b"evil"}), target, "would be written outside")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["a/\x1b[31mred.png", "a/new\nline.png", "x" * 256])
def test_names_that_no_file_should_have_are_refused(tmp_path: Path, target: Path, make: object, name: str) -> None:
    assert callable(make)
    refused(make(tmp_path / "odd", {name: b"x"}), target, "control characters or a part of over 255 bytes")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.BLKTYPE, "is a device"),
        (tarfile.FIFOTYPE, "is a device"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, target: Path, kind: bytes, message: str) -> None:
    refused(make_special_tar(tmp_path / "evil.tar", kind, "/etc/passwd"), target, message)


@pytest.mark.parametrize(
    ("mode", "message"), [(stat.S_IFLNK, "is a link"), (stat.S_IFCHR, "is a device"), (stat.S_IFIFO, "is a device")]
)
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, target: Path, mode: int, message: str) -> None:
    refused(make_special_zip(tmp_path / "evil.zip", mode), target, message)


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
