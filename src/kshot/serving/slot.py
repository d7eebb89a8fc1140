"""One inference at a time, a bounded queue before it, and requests of the same kind answered together.

torch uses every core for one pass, and two at once only take turns: a second thread makes the slowest answers slower
and none faster. So there is one thread, and whoever comes when the queue is full is told to come back.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kshot.serving.problems import ProblemError

T = TypeVar("T")
_LEAST_WAIT_S = 1
_KEPT = 0.9  # of the mean time of a request, at each further one


@dataclass(eq=False, kw_only=True)
class _Job:
    """`group`: jobs of one are done together by the `work` of the first, which gets all their inputs."""

    work: Callable[[list[Any]], list[Any]]
    given: Any
    group: Hashable
    answer: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slot:
    def __init__(self, *, max_waiting: int, max_together: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._jobs: deque[_Job] = deque()
        self._max_waiting, self._max_together = max_waiting, max_together
        self._busy = False
        self._mean_s = 0.0

    def check_room(self) -> None:
        """Raise a 503 problem where too many wait."""
        if len(self._jobs) >= self._max_waiting:
            raise ProblemError(
                503,
                "too many requests wait",
                found=f"{len(self._jobs)} requests that wait",
                needed=f"fewer than {self._max_waiting}",
                headers={"Retry-After": str(max(_LEAST_WAIT_S, round(self._mean_s * len(self._jobs))))},
            )

    @property
    def n_waiting(self) -> int:
        return len(self._jobs)

    async def run(self, work: Callable[[], T]) -> T:
        """The answer of `work`, in its turn. Raises a 503 ProblemError where too many wait."""
        answer: T = await self._answer(_Job(work=lambda _: [work()], given=None, group=object()))
        return answer

    async def run_together(self, group: Hashable, work: Callable[[list[Any]], list[T]], given: Any) -> T:
        """The part of `given` in the answers of `work` to all that wait with the same `group` by now."""
        answer: T = await self._answer(_Job(work=work, given=given, group=group))
        return answer

    async def _answer(self, job: _Job) -> Any:
        self.check_room()
        self._jobs.append(job)
        if not self._busy:
            self._start_next()
        try:
            return await job.answer
        except asyncio.CancelledError:
            if job in self._jobs:
                self._jobs.remove(job)
            raise

    def _start_next(self) -> None:
        if not self._jobs:
            self._busy = False
            return
        self._busy = True
        first = self._jobs.popleft()
        together = [first]
        while self._jobs and self._jobs[0].group == first.group and len(together) < self._max_together:
            together.append(self._jobs.popleft())
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, self._do, together, loop)

    def _do(self, together: list[_Job], loop: asyncio.AbstractEventLoop) -> None:
        """In the thread of inference. Answers may be exceptions, each for whoever asked that."""
        start = time.perf_counter()
        try:
            answers: list[Any] = together[0].work([job.given for job in together])
        except BaseException as error:
            answers = [error] * len(together)
        loop.call_soon_threadsafe(self._done, together, answers, time.perf_counter() - start)

    def _done(self, together: list[_Job], answers: list[Any], took_s: float) -> None:
        self._mean_s = _KEPT * self._mean_s + (1 - _KEPT) * took_s / len(together)
        self._start_next()
        for job, answer in zip(together, answers, strict=True):
            if job.answer.done():  # whoever asked went away
                continue
            if isinstance(answer, BaseException):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
