"""What `python -m flows.automations` leaves on a real Prefect server."""

import pytest
from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import Posture
from prefect.settings import PREFECT_API_URL

from flows import automations

SILENT, TELL = "kshot: a silent run has crashed", "kshot: tell of failures and decisions"


@pytest.fixture
def configured(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    monkeypatch.delenv("KSHOT_WEBHOOK", raising=False)


@pytest.mark.usefixtures("configured")
def test_they_are_made_once_and_brought_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert automations.main() == 0
    assert "nobody is told of failures; next: KSHOT_WEBHOOK=URL" in capsys.readouterr().out
    monkeypatch.setenv("KSHOT_WEBHOOK", "http://127.0.0.1:9/hook")
    assert automations.main() == 0
    printed = capsys.readouterr().out
    assert f"{SILENT}: brought up to date" in printed
    assert f"{TELL}: made" in printed
    with get_client(sync_client=True) as client:
        (silent,), (tell,) = (client.read_automations_by_name(name) for name in (SILENT, TELL))
        queue = client.read_work_queue_by_name(automations.QUEUE, automations.POOL)
    assert silent.trigger.posture == Posture.Proactive
    assert 30 < silent.trigger.within.total_seconds() <= 45  # a sign every 30 s, and found after two of them
    assert {"prefect.flow-run.Failed", "kshot.model.refused", "kshot.model.promoted"} <= tell.trigger.expect
    assert queue.concurrency_limit == 1


def test_without_a_server_the_command_says_which_one_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(automations, "check_configured", lambda: None)
    assert automations.main() == 2
    assert "found no PREFECT_API_URL; need a Prefect server" in capsys.readouterr().err
