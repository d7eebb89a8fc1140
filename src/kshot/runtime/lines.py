"""Progress lines, at most one every two seconds."""

import time
from collections.abc import Callable

from kshot.printing import printable

_EVERY_S = 2.0


class LiveLines:
    """Hands lines to `write` as they may be printed: every important one, of the others one every two seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last = time.monotonic()

    def log(self, line: str) -> None:
        self._write(printable(line))
        self._last = time.monotonic()

    def log_sparingly(self, line: Callable[[], str]) -> None:
        """Write what `line` returns, unless a line was written within the last two seconds."""
        if time.monotonic() - self._last >= _EVERY_S:
            self.log(line())


def silent_lines() -> LiveLines:
    return LiveLines(lambda line: None)
