"""An error that crosses a process, with its kind."""

import os
import subprocess
import sys

import pytest

from kshot.errors import DataError
from kshot.runtime.error_file import LeftError, error_file, leave_error


def _left_by(program: str) -> LeftError | None:
    with error_file() as file:
        subprocess.run([sys.executable, "-c", program], env=os.environ | file.environment, check=False)
        return file.read()


def test_an_error_comes_back_as_the_class_that_it_was() -> None:
    left = _left_by(
        "from kshot.errors import DataError; from kshot.runtime.error_file import leave_error\n"
        "leave_error(DataError('3 classes;\\n need 5'))"
    )
    assert left == LeftError(kind="DataError", message="3 classes; need 5", exit_code=2)
    error = left.as_error()
    assert (type(error), str(error)) == (DataError, "3 classes; need 5")


def test_a_name_in_a_message_is_left_as_it_may_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    with error_file() as file:
        monkeypatch.setenv(*next(iter(file.environment.items())))
        leave_error(DataError("caf\udce9/\x1b[31mred.png is damaged"))
        left = file.read()
    assert left is not None and left.message == r"caf\udce9/\x1b[31mred.png is damaged"


def test_a_fault_that_is_none_of_kshots_is_named_in_the_message() -> None:
    left = _left_by("from kshot.runtime.error_file import leave_error; leave_error(KeyError('accuracy'))")
    assert left == LeftError(kind="KeyError", message="KeyError: 'accuracy'", exit_code=1)
    assert left.as_error() is None


def test_a_process_that_left_nothing_is_told_from_one_that_did() -> None:
    assert _left_by("pass") is None


def test_without_a_named_file_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KSHOT_ERROR_FILE", raising=False)
    with error_file() as file:
        leave_error(DataError("x"))
        assert not list(file.path.parent.iterdir())
