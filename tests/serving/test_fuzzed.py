"""Requests that Schemathesis makes of the interface's own description: none ends in a fault, none passes without a key.

KSHOT_FAULTS=full makes more than 10,000 of them.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from kshot.serving.access import add_key, read_keys
from kshot.serving.gate import OPEN_PATHS
from tests.serving.small_service import small_service

EACH = 700 if os.environ.get("KSHOT_FAULTS") == "full" else 15

made_up = settings(
    max_examples=EACH,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
)


@pytest.fixture(scope="module")
def open_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with small_service(tmp_path_factory.mktemp("open")) as small:
        small.show()
        yield schemathesis.openapi.from_asgi("/openapi.json", small.gate)


@pytest.fixture(scope="module")
def locked_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("locked")
    secret = add_key(folder / "keys", "line", write=True)
    with small_service(folder, keys=read_keys(folder / "keys")) as small:
        yield schemathesis.openapi.from_asgi("/openapi.json", small.gate, headers={"Authorization": f"Bearer {secret}"})


def each_request(api: Any, check: Callable[[Any], None]) -> int:
    """Make requests of every operation, and check each answer; how many operations there are."""
    operations = [found.ok() for found in api.get_all_operations()]
    for operation in operations:

        @made_up
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            check(case)

        ask()
    return len(operations)


@pytest.mark.timeout(3600)
def test_no_request_is_a_fault(open_api: Any) -> None:
    def check(case: Any) -> None:
        answer = case.call()
        assert answer.status_code < 500, answer.content
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == ["application/problem+json"]

    assert each_request(open_api, check) >= 16


@pytest.mark.timeout(3600)
def test_no_request_without_a_key_is_answered(locked_api: Any) -> None:
    def check(case: Any) -> None:
        case.headers.pop("Authorization", None)
        answer = case.call()
        assert answer.status_code == 401 or case.path in OPEN_PATHS

    assert each_request(locked_api, check) >= 16
