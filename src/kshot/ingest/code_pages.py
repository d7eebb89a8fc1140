"""In which code page the member names of an archive are written. Old zips do not say, and a wrong guess garbles."""

import struct
import zlib
from zipfile import ZipInfo

from kshot.errors import DataError
from kshot.printing import printable

_MARKED_UTF8 = 1 << 11  # of a zip member's flags
_UNICODE_PATH = 0x7075  # the extra field of Info-ZIP that repeats a name in UTF-8
_COMMON = ("gbk", "shift_jis", "big5", "cp949", "cp1251", "cp1252", "cp437")
_NO_LETTER = "\ufffd"


def check_code_page(names: str) -> None:
    """Raise DataError unless `names` is "" or a code page that Python knows and that holds ASCII."""
    try:
        known = not names or b"a/Z.0_".decode(names) == "a/Z.0_"
    except (LookupError, UnicodeError):
        known = False
    if not known:
        raise DataError(
            f"found the code page {names!r}; needed one that Python knows; next: --names {_COMMON[0]}, or another"
        )


def zip_name(archive: str, info: ZipInfo, names: str) -> str:
    """The name of a member, with its backslashes as they are.

    A name that is not marked as UTF-8 is read in the code page `names`, or as UTF-8 where it is valid. Raise
    DataError where it is neither: which code page it is, a person has to say.
    """
    if info.flag_bits & _MARKED_UTF8 or info.orig_filename.isascii():
        return info.orig_filename
    raw = info.orig_filename.encode("cp437")  # as zipfile has decoded it
    repeated = _unicode_path(info.extra, raw)
    if repeated is not None:
        return repeated
    try:
        return raw.decode(names or "utf-8")
    except UnicodeDecodeError:
        found = f"{archive} has a member name that is not {names or 'UTF-8'}, {raw!r}"
        raise DataError(
            f"{found}; needed its code page; next: add --names and the one that reads right: {_readings(raw)}"
        ) from None


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in UTF-8 that the extra field repeats, where it belongs to the name `raw`."""
    while len(extra) >= 4:
        tag, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if tag == _UNICODE_PATH and field[:5] == struct.pack("<BI", 1, zlib.crc32(raw)):
            try:
                return field[5:].decode()
            except UnicodeDecodeError:
                return None
    return None


def _readings(raw: bytes) -> str:
    """How `raw` reads in each common code page in which it can be read."""
    read = ((page, raw.decode(page, "replace")) for page in _COMMON)
    return ", ".join(f"{page} reads {printable(name)}" for page, name in read if _NO_LETTER not in name)
