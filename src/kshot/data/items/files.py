"""Reads a file of unknown origin, in which there is one item."""

from pathlib import Path

from kshot.errors import DataError

MAX_FILE_BYTES = 128 * 2**20


def file_bytes(source: Path | bytes) -> bytes:
    """The content of a file, or the content itself. Raises DataError unless it has 1 to MAX_FILE_BYTES bytes."""
    content = source if isinstance(source, bytes) else _read(source)
    if not content:
        raise DataError("the file has 0 bytes")
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"the file has {len(content)} bytes; at most {MAX_FILE_BYTES} are read")
    return content


def _read(path: Path) -> bytes:
    if not path.is_file():  # opening a pipe would wait for its writer
        raise DataError("not a plain file")
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
