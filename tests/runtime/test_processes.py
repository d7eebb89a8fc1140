import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kshot.errors import DataError, StageError, TransientStageError
from kshot.runtime.processes import Processes, in_order
from tests.processes import wait_for_text, wait_until_gone


def pids(numbers: list[int]) -> tuple[int, list[int]]:
    return os.getpid(), numbers


def refuse(numbers: list[int]) -> None:
    raise DataError(f"found {numbers}; needed others")


def end(numbers: list[int]) -> None:
    os._exit(numbers[0])


def kill(numbers: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_batches_are_answered_in_order_by_other_processes() -> None:
    with Processes(2) as processes:
        answers = list(in_order(processes, pids, ([number] for number in range(20)), ahead=4))
    assert [numbers for _, numbers in answers] == [[number] for number in range(20)]
    assert os.getpid() not in {pid for pid, _ in answers}


def test_no_more_batches_are_taken_than_are_in_work_or_wait() -> None:
    taken: list[int] = []

    def batches() -> object:
        for number in range(50):
            taken.append(number)
            yield [number]

    with ThreadPoolExecutor(1) as threads:
        answers = in_order(threads, len, batches(), ahead=3)  # type: ignore[arg-type]
        next(answers)
        assert taken == [0, 1, 2, 3]
        answers.close()  # type: ignore[attr-defined]


def test_an_error_of_the_function_is_raised_here_and_the_process_goes_on() -> None:
    with Processes(1) as processes:
        with pytest.raises(DataError, match=r"found \[1\]; needed others"):
            processes.submit(refuse, [1]).result()
        assert processes.submit(len, [1, 2]).result() == 2


def test_a_process_that_ends_is_one_error_that_names_its_work() -> None:
    with Processes(1) as processes, pytest.raises(StageError, match=r"ended with exit code 3, at work on 3 to 4"):
        processes.submit(end, [3, 4]).result()
    with Processes(1) as processes, pytest.raises(TransientStageError, match=r"signal 9, at work on a to a; next: run"):
        processes.submit(kill, ["a"]).result()


def test_a_process_loads_what_its_function_needs_and_not_what_the_program_has_loaded() -> None:
    with Processes(1) as processes:
        assert "pytest" in sys.modules
        assert not processes.submit(eval, "'pytest' in __import__('sys').modules").result()


def test_no_process_is_left_when_it_is_left_early() -> None:
    running = []

    def ask() -> None:
        with Processes(2) as processes:
            running.extend(processes.submit(pids, [number]).result()[0] for number in range(4))
            processes.submit(time.sleep, 1000)
            raise KeyboardInterrupt("by the user")

    with pytest.raises(KeyboardInterrupt, match="by the user"):
        ask()
    for pid in running:
        wait_until_gone(pid)


SCRIPT = """
import os, sys, time
from pathlib import Path
from kshot.runtime.processes import Processes

with Processes(1) as processes:
    pid = processes.submit(os.getpid).result()
    Path("pid.tmp").write_text(str(pid))
    os.replace("pid.tmp", "pid")
    processes.submit(time.sleep, 0 if "short" in sys.argv else 1000).result()
"""


def test_a_script_without_a_guard_may_ask_for_processes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "socket.py").write_text("raise ImportError('a file of the user, not the module of that name')")
    command = [sys.executable, "-P", "script.py", "short"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_asked_for_them(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with (tmp_path / "stderr").open("w") as stderr:
        asking = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stderr=stderr)
    with asking:
        pid = int(wait_for_text(tmp_path / "pid"))
        asking.send_signal(number)
    wait_until_gone(pid)
    assert (tmp_path / "stderr").read_text().count("KeyboardInterrupt") == (number == signal.SIGINT)
