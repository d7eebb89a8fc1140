"""The promote flow with the real Prefect and a stand-in for the gate; tests/registry has the real one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State

from flows import promote
from flows.summary import Promotion
from kshot.errors import StageError

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(root: Path, **parameters: Any) -> State[Promotion]:
    state: State[Any] = promote.promote_flow(root, **parameters, return_state=True)
    return state


def artifacts(key: str) -> list[str]:
    async def read() -> list[str]:
        async with get_client() as client:
            found = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
            return [str(artifact.data) for artifact in found]

    return asyncio.run(read())


def test_a_version_that_waits_stops_the_flow_with_the_command_that_approves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int | None, bool]] = []

    def gate(root: Path, version: int | None, approve: bool) -> Promotion:
        asked.append((version, approve))
        words = "version 3 promoted: better" if approve else "version 3 waits for approval: better"
        return Promotion(name="toy", version=3, is_champion=approve, waiting=not approve, words=words)

    monkeypatch.setattr(promote, "_promote", gate)
    state = run(tmp_path)
    assert state.is_completed()
    assert state.message == "version 3 waits for approval: better"
    [page] = artifacts("promotion-waits")
    assert "python -m flows.promote --version 3 --approve" in page

    assert run(tmp_path, version=3, approve=True).message == "version 3 promoted: better"
    assert asked == [(None, False), (3, True)]


def test_a_refusal_is_the_message_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gate(root: Path, version: int | None, approve: bool) -> Promotion:
        raise StageError("version 2 of toy fails its smoke test: other weights")

    monkeypatch.setattr(promote, "_promote", gate)
    state = run(tmp_path, version=2)
    assert state.is_failed()
    with pytest.raises(StageError, match="fails its smoke test"):
        state.result()
