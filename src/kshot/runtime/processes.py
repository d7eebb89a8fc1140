"""Processes that apply functions to batches, for work on which threads would wait for one another.

Each is a Python of its own. It does not run the program's main module again, as those of multiprocessing do, so that a
script, a notebook and a console script may all ask for some. It imports what the function needs and nothing else, gets
no signal of the terminal, and ends with this process, however that ends.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from kshot.errors import StageError, TransientStageError
from kshot.runtime.lifeline import die_with_parent

Batch = TypeVar("Batch", bound=Sequence[Any])
Result = TypeVar("Result")

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Processes(Executor):
    """`n` of them, which start when this is entered. A function is one of a module; all that passes can be pickled."""

    def __init__(self, n: int) -> None:
        self._threads = ThreadPoolExecutor(max_workers=n)  # each waits for one process
        self._n = n
        self._all: list[_Process] = []
        self._idle: SimpleQueue[_Process] = SimpleQueue()

    def __enter__(self) -> Self:
        try:
            for _ in range(self._n):
                self._all.append(_Process())
                self._idle.put(self._all[-1])
        except BaseException:
            self.shutdown()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **keywords: Any) -> Future[Result]:
        """Raises what the function raises, and StageError where its process ended."""
        return self._threads.submit(self._ask, function, arguments, keywords)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        for process in self._all:
            process.kill()
        self._threads.shutdown(wait=wait, cancel_futures=True)

    def _ask(self, function: Callable[..., Result], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Result:
        process = self._idle.get()
        try:
            return process.ask(function, arguments, keywords)
        finally:
            self._idle.put(process)


def in_order(
    executor: Executor, function: Callable[[Batch], Result], batches: Iterable[Batch], *, ahead: int
) -> Iterator[Result]:
    """What the function gives for each batch, in their order; `ahead` of them are in work or wait to be taken."""
    waiting: deque[Future[Result]] = deque()
    for batch in batches:
        waiting.append(executor.submit(function, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Process:
    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def ask(self, function: Callable[..., Result], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Result:
        try:
            self._connection.send((function, arguments, keywords))
            result, error = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise self._ended(arguments) from lost
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ended(self, arguments: tuple[Any, ...]) -> StageError:
        code = self._process.wait()
        work = f", at work on {arguments[0][0]} to {arguments[0][-1]}" if arguments and arguments[0] else ""
        if code >= 0:
            return StageError(f"a process of this command ended with exit code {code}{work}")
        return TransientStageError(
            f"a process of this command was ended by signal {-code}{work}; "
            "next: run it again; if it is signal 9 again, with more memory, else without those files"
        )


def main() -> None:
    """`python -m kshot.runtime.processes FD`: answer what comes through the pipe until it closes."""
    die_with_parent()
    with Connection(int(sys.argv[1])) as connection:
        try:
            while True:
                connection.send(_answer(*connection.recv()))
        except (EOFError, OSError):
            return


def _answer(
    function: Callable[..., Result], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Result | None, Exception | None]:
    try:
        return function(*arguments, **keywords), None
    except Exception as error:
        return None, error


if __name__ == "__main__":
    main()
