"""Reads a file of unknown origin, in which there is one item."""

import os
import stat
from pathlib import Path

from kshot.errors import DataError

MAX_FILE_BYTES = 128 * 2**20


def file_bytes(source: Path | str | bytes) -> bytes:
    """The content of a file, or the content itself. Raises DataError unless it has 1 to MAX_FILE_BYTES bytes."""
    content = source if isinstance(source, bytes) else _read(source)
    if not content:
        raise DataError("the file has 0 bytes")
    _check_size(len(content))
    return content


def _read(path: Path | str) -> bytes:
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError("not a plain file")
            _check_size(status.st_size)
            return file.readall()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError("not a plain file") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise DataError(f"the file has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read")
