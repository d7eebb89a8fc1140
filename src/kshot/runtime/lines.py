"""Lines for a person who waits: often enough to see that it goes on, not more."""

import time
from collections.abc import Callable

_EVERY_S = 2.0


class LiveLines:
    """Hands lines to `write`: every one that must be seen, and of the others one in two seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        self._write(line)
        self._last = time.monotonic()

    def mention(self, line: Callable[[], str]) -> None:
        """Say what `line` returns, unless something was said within the last two seconds."""
        if time.monotonic() - self._last >= _EVERY_S:
            self.say(line())


def silent_lines() -> LiveLines:
    return LiveLines(lambda line: None)
