from pathlib import Path

import pytest
from mlflow import MlflowClient

from kshot.tracking import RunRecord, default_tracking_uri
from tests.tracking.toy_runs import toy_record


@pytest.fixture
def record(project: Path) -> RunRecord:
    return toy_record(project)


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=default_tracking_uri(project))
