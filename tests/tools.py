"""Tools that a test needs and a machine may lack."""

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skip the test; or fail it where CI is set, so that no test is left out there without anybody's notice."""
    if os.environ.get("CI"):
        pytest.fail(f"found no {what} on this machine; CI needs it; next: install it, see .ci/run")
    pytest.skip(f"no {what} on this machine")
