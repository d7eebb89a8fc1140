"""One inference at a time: turns, batches, a full queue, whoever goes away, and errors of one or of all."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from kshot.serving.problems import ProblemError
from kshot.serving.slot import Slot


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_jobs_run_one_at_a_time_in_their_order() -> None:
    async def work() -> list[int]:
        slot, running, seen = Slot(max_waiting=100, max_together=1), [0], []

        def job(number: int) -> None:
            running[0] += 1
            assert running[0] == 1
            seen.append(number)
            running[0] -= 1

        await asyncio.gather(*(slot.run(lambda n=n: job(n)) for n in range(50)))
        return seen

    assert run(work()) == list(range(50))


def test_those_that_wait_for_the_same_are_answered_together_and_get_their_own_part() -> None:
    async def work() -> tuple[list[int], list[list[int]]]:
        slot, batches = Slot(max_waiting=100, max_together=4), []
        begin = threading.Event()

        def square(given: list[int]) -> list[int]:
            begin.wait(5)
            batches.append(given)
            return [number**2 for number in given]

        first = asyncio.create_task(slot.run_together("a", square, 0))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(slot.run_together("a" if n < 6 else "b", square, n)) for n in range(1, 8)]
        await asyncio.sleep(0.05)
        begin.set()
        return await asyncio.gather(first, *others), batches

    answers, batches = run(work())
    assert answers == [n**2 for n in range(8)]
    assert batches == [[0], [1, 2, 3, 4], [5], [6, 7]]


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def work() -> ProblemError:
        slot, begin = Slot(max_waiting=2, max_together=1), threading.Event()
        waiting = [asyncio.create_task(slot.run(lambda: begin.wait(5))) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(ProblemError, match="2 requests that wait; need fewer than 2") as refused:
            await slot.run(lambda: None)
        begin.set()
        await asyncio.gather(*waiting)
        return refused.value

    problem = run(work())
    assert problem.status == 503 and int(problem.headers["Retry-After"]) >= 1


def test_who_went_away_is_not_worked_for() -> None:
    async def work() -> list[str]:
        slot, begin, done = Slot(max_waiting=10, max_together=1), threading.Event(), []
        first = asyncio.create_task(slot.run(lambda: begin.wait(5)))
        gone = asyncio.create_task(slot.run(lambda: done.append("gone")))
        last = asyncio.create_task(slot.run(lambda: done.append("last")))
        await asyncio.sleep(0.05)
        gone.cancel()
        begin.set()
        await asyncio.gather(first, last)
        return done

    assert run(work()) == ["last"]


def test_an_error_of_one_does_not_reach_the_others_of_its_batch_and_the_slot_goes_on() -> None:
    async def work() -> list[Any]:
        slot, begin = Slot(max_waiting=10, max_together=8), threading.Event()

        def halve(given: list[int]) -> list[Any]:
            begin.wait(5)
            return [number // 2 if number % 2 == 0 else ValueError(f"{number} is odd") for number in given]

        tasks = [asyncio.create_task(slot.run_together("a", halve, n)) for n in (0, 1, 2)]
        await asyncio.sleep(0.05)
        begin.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(ZeroDivisionError):
            await slot.run(lambda: 1 // 0)
        return [*found, await slot.run(lambda: "on")]

    zero, odd, one, after = run(work())
    assert (zero, one, after) == (0, 1, "on") and str(odd) == "1 is odd"
