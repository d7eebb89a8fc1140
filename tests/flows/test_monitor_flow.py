"""The monitor flow with the real Prefect: what it says of a log, and that an event tells of a drift once in a while."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import State

from flows import monitor
from flows.monitor import DRIFTED, Monitored
from tests.conftest import REPOSITORY
from tests.monitoring.logged_answers import log_answers

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(monitor, "emit_event", lambda event, **fields: events.append({"event": event, **fields}))
    return events


def run(root: Path, **parameters: Any) -> State[Monitored]:
    state: State[Any] = monitor.monitor_flow(
        root, answers=root / "answers", window=100, reference=100, return_state=True, **parameters
    )
    return state


def test_a_drift_is_told_of_once_until_the_cool_down_is_over(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    log_answers(tmp_path / "answers", 150)
    log_answers(tmp_path / "answers", 150, seed=1, shift=1.5)
    state = run(tmp_path)
    assert state.is_completed() and str(state.message).startswith("parts: drift: features")
    assert run(tmp_path).result().told == ()
    assert [event["event"] for event in told] == [DRIFTED]
    assert told[0]["resource"]["prefect.resource.id"] == "kshot.model.m.1"
    assert run(tmp_path, cool_down_h=0.0).result().told == ("models:/m/1",)
    assert (tmp_path / ".kshot" / "monitor" / "parts" / "monitor.html").is_file()


def test_answers_that_have_not_changed_tell_nobody(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    log_answers(tmp_path / "answers", 150)
    log_answers(tmp_path / "answers", 150, seed=1)
    state = run(tmp_path)
    assert state.message == "parts: nothing has changed that 100 answers would show"
    assert told == []


def test_a_service_that_was_never_asked_fails_the_run_with_the_next_step(tmp_path: Path) -> None:
    state = run(tmp_path)
    assert state.is_failed() and "next: kshot serve" in str(state.message)


def test_the_deployment_that_retrains_listens_to_this_event() -> None:
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    (found,) = [one for one in deployments if one["name"] == "retrain-on-drift"]
    assert found["triggers"][0]["expect"] == [DRIFTED]
    assert found["triggers"][0]["match"] == {"prefect.resource.id": "kshot.model.*"}
