"""How a process that ends with an error hands it to the process that started it: in a small file.

The words that a process prints are for people. A stage runs below DVC and a shell, a worker below torchrun, and
each of those prints words of its own; so whoever starts a process names a file, and reads it when the process failed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kshot.errors import KshotError
from kshot.printing import one_line

ERROR_FILE = "KSHOT_ERROR_FILE"
_OF_A_FAULT = 1  # the exit code of a process that an unexpected exception ended


@dataclass(frozen=True, kw_only=True)
class LeftError:
    """The class's name, the message on one line, and what the process exits with."""

    kind: str
    message: str
    exit_code: int

    def as_error(self) -> KshotError | None:
        """The same error again; None for an unexpected exception."""
        kind = _classes(KshotError).get(self.kind)
        return None if kind is None else kind(self.message)


@dataclass(frozen=True)
class ErrorFile:
    """The file that a process to be started may leave its error in."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {ERROR_FILE: str(self.path)}

    def read(self) -> LeftError | None:
        """None where no process left an error."""
        try:
            return LeftError(**json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


@contextmanager
def error_file() -> Iterator[ErrorFile]:
    """A file of its own for one process and its children; removed at the end."""
    with TemporaryDirectory(prefix="kshot-") as folder:
        yield ErrorFile(Path(folder, "error.json"))


def leave_error(error: Exception) -> None:
    """Write `error` to the file that KSHOT_ERROR_FILE names; nothing where it names none."""
    named = os.environ.get(ERROR_FILE)
    if not named:
        return
    message = one_line(str(error))
    if isinstance(error, KshotError):
        left = LeftError(kind=type(error).__name__, message=message, exit_code=error.exit_code)
    else:
        kind = type(error).__name__
        left = LeftError(kind=kind, message=f"{kind}: {message}", exit_code=_OF_A_FAULT)
        if _holds_own_error(Path(named)):
            return  # the error of one worker brings the others down, and is the one to read
    unfinished = Path(f"{named}.{os.getpid()}")  # several workers may fail at once
    unfinished.write_text(json.dumps(asdict(left)), encoding="utf-8")
    unfinished.replace(named)


def _holds_own_error(path: Path) -> bool:
    left = ErrorFile(path).read()
    return left is not None and left.as_error() is not None


def _classes(root: type[KshotError]) -> dict[str, type[KshotError]]:
    """`root` and every class below it, by name."""
    below = (found for child in root.__subclasses__() for found in _classes(child).items())
    return {root.__name__: root, **dict(below)}
