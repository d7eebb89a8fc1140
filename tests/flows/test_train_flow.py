"""The train flow on a tiny project, with the real Prefect and DVC; registering and promoting are stand-ins."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import TaskRunSort
from prefect.states import Running

from flows import train
from flows.summary import Promotion, Registered, Summary, to_markdown
from flows.train import train_flow
from kshot.errors import ModelError, StageError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def registrations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The workspaces that the flow asked to register, in order; the first asking makes a version."""
    asked: list[Path] = []

    def register(root: Path) -> Registered:
        asked.append(root)
        return Registered(name="toy", version=1, created=len(asked) == 1)

    def promote(root: Path, version: int | None, approve: bool) -> Promotion:
        assert (version, approve) == (1, False)
        return Promotion(name="toy", version=1, is_champion=True, waiting=False, words="version 1 promoted: first")

    def report(root: Path, registered: Registered) -> Path:
        return root / "report.html"

    monkeypatch.setattr(train, "_check", lambda root: None)
    monkeypatch.setattr(train, "_register", register)
    monkeypatch.setattr(train, "_report", report)
    monkeypatch.setattr("flows.promote._promote", promote)
    return asked


def _run(root: Path) -> State[Summary]:
    state: State[Any] = train_flow(root, return_state=True)
    return state


def _task_messages(state: State[Summary], expected: dict[str, str]) -> dict[str, str | None]:
    """Message of the last state of every task run of the flow run, by task run name.

    Asks until it is as expected: the server writes task runs down a moment after they happen.
    """

    async def read() -> dict[str, str | None]:
        of_flow = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        found: dict[str, str | None] = {}
        async with get_client() as client:
            for _ in range(100):
                runs = await client.read_task_runs(flow_run_filter=of_flow, sort=TaskRunSort.NAME_ASC, limit=100)
                found = {run.name: run.state.message for run in runs if run.state is not None}
                if found == expected:
                    break
                await asyncio.sleep(0.1)
        return found

    return asyncio.run(read())


def test_stages_run_in_order_then_are_pushed_and_registered_and_a_second_run_only_looks(
    workspace: Path, registrations: list[Path]
) -> None:
    first = _run(workspace)
    summary = first.result()
    assert [(run.stage, run.outcome) for run in summary.stages] == [("check", "ran"), ("fit", "ran"), ("score", "ran")]
    assert summary.registered.created
    assert any((workspace / ".kshot/dvc-remote/files").rglob("*"))
    assert any((workspace / ".kshot/dvc-remote/runs").rglob("*"))
    expected = dict.fromkeys(("check", "fit", "score"), "ran")
    expected |= {"push": "pushed", "register": "toy version 1, new", "promote": "version 1 promoted: first"}
    expected["report"] = "attached to the MLflow run"
    assert _task_messages(first, expected) == expected

    receipt = (workspace / "dvc.lock").read_bytes()
    second = _run(workspace)
    assert [(run.outcome, run.seconds) for run in second.result().stages] == [("cached", 0.0)] * 3
    assert second.message == "toy version 1, already registered; version 1 promoted: first"
    assert (workspace / "dvc.lock").read_bytes() == receipt
    assert "| protonet, non-transductive | 91.00 ± 0.40 |" in to_markdown(second.result())


def test_a_changed_file_reruns_what_reads_it_and_no_more(checked: Path, registrations: list[Path]) -> None:
    _run(checked).result()
    (checked / "score.py").write_text((checked / "score.py").read_text().replace("0.91", "0.92"))
    assert [run.outcome for run in _run(checked).result().stages] == ["cached", "cached", "ran"]


def test_a_rejecting_stage_stops_the_flow_at_once_with_its_own_line(checked: Path, registrations: list[Path]) -> None:
    (checked / "fit.py").write_text(
        "import sys; from kshot.errors import DataError; from kshot.runtime.error_file import leave_error\n"
        "open('tries', 'a').write('x'); leave_error(DataError('no classes')); sys.exit(2)"
    )
    state = _run(checked)
    assert state.message == "fit failed: no classes"
    with pytest.raises(StageError, match=r"^fit failed: no classes$") as raised:
        state.result()
    assert raised.value.exit_code == 2
    assert (checked / "tries").read_text() == "x"
    expected = {"check": "cached", "fit": "fit failed: no classes"}
    assert _task_messages(state, expected) == expected
    assert registrations == []


def test_a_killed_stage_is_run_again(checked: Path, registrations: list[Path]) -> None:
    once = "import os\nif not os.path.exists('killed'):\n    open('killed', 'w').close()\n    os.kill(os.getpid(), 9)\n"
    (checked / "fit.py").write_text(once + (checked / "fit.py").read_text())
    assert [run.outcome for run in _run(checked).result().stages] == ["cached", "ran", "ran"]


def test_a_failed_registration_is_tried_once_and_said_in_one_line(
    checked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def refuse(root: Path) -> Registered:
        asked.append(root)
        raise ModelError("found no weights; need weights.safetensors")

    monkeypatch.setattr(train, "_check", lambda root: None)
    monkeypatch.setattr(train, "_register", refuse)
    state = _run(checked)
    with pytest.raises(ModelError, match="found no weights"):
        state.result()
    assert len(asked) == 1


def test_a_missing_score_is_named(checked: Path, registrations: list[Path]) -> None:
    broken = (checked / "score.py").read_text().replace('"accuracy": 0.91', '"precision": 0.91')
    (checked / "score.py").write_text(broken)
    with pytest.raises(StageError, match=r"cannot read the scores in .*metrics\.json: KeyError\('accuracy'\)"):
        _run(checked).result()


def test_a_run_whose_process_was_killed_is_marked_crashed_by_the_next(checked: Path, registrations: list[Path]) -> None:
    with get_client(sync_client=True) as client:
        killed = client.create_flow_run(train_flow, state=Running())
        (checked / ".kshot").mkdir()
        (checked / ".kshot/flow-run.id").write_text(f"{killed.id}\n{checked.parent / 'the original'}")
        _run(checked).result()
        of_a_copy = client.read_flow_run(killed.id).state
        assert of_a_copy is not None and of_a_copy.name == "Running"
        (checked / ".kshot/flow-run.id").write_text(f"{killed.id}\n{checked}")
        _run(checked).result()
        state = client.read_flow_run(killed.id).state
    assert state is not None
    assert (state.name, state.message) == ("Crashed", "its process was killed")


@pytest.mark.parametrize("note", ["", "torn", "6f1de1a0-0000-4000-8000-000000000000"])
def test_a_note_of_a_run_that_nobody_knows_is_passed_over(
    checked: Path, registrations: list[Path], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checked / ".kshot").mkdir()
    (checked / ".kshot/flow-run.id").write_text(note)
    monkeypatch.setattr(train.runtime.flow_run, "id", "6f1de1a0-0000-4000-8000-000000000001", raising=False)
    train.close_lost_run(checked)
    assert (checked / ".kshot/flow-run.id").read_text() == f"6f1de1a0-0000-4000-8000-000000000001\n{checked}"
