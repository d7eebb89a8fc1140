"""One Prefect server for all flow tests, and the tiny project that they run on."""

from collections.abc import Iterator

import pytest

from tests.dvc_project import checked, checked_template, workspace, workspace_template

__all__ = ["checked", "checked_template", "workspace", "workspace_template"]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect API with a database of its own, for every flow that a test runs."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=90):
        yield
