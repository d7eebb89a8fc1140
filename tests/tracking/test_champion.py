"""Moving the champion alias with the real MLflow on SQLite: one winner, a full history, a way back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from kshot.errors import ModelError, StageError
from kshot.tracking import (
    RunRecord,
    fetch_model,
    history,
    move_champion,
    record_decision,
    register,
    rollback,
    version_with,
)
from kshot.tracking.store import open_store
from tests.tracking.racers import race

pytestmark = pytest.mark.usefixtures("smoke_test_here")


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.fixture
def three_versions(record: RunRecord) -> Path:
    """The root of a registry with versions 1, 2 and 3 of `toy`, of one run, none of them champion."""
    register(record)
    with open_store(record.root) as client:
        first = client.get_model_version("toy", "1")
        for _ in range(2):
            client.create_model_version("toy", source=first.source, run_id=first.run_id, tags=first.tags)
        client.set_registered_model_alias("toy", "challenger", "3")
    return record.root


def promote(root: Path, version: int, expected: int | None) -> None:
    move_champion("toy", root, version=version, expected=expected, reason="better", by="test")


def poison(root: Path, version: int) -> None:
    """Other weights in the store under the same name."""
    path = fetch_model(f"models:/toy/{version}", root).folder / "weights.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)


def outcomes(root: Path) -> list[tuple[str, int, int | None, str]]:
    return [(move.action, move.version, move.champion, move.outcome) for move in history("toy", root)]


def test_a_promotion_moves_the_alias_and_keeps_the_way_back(three_versions: Path, client: MlflowClient) -> None:
    promote(three_versions, 1, None)
    assert client.get_registered_model("toy").aliases == {"champion": 1, "challenger": 3}
    promote(three_versions, 3, 1)
    assert client.get_registered_model("toy").aliases == {"champion": 3, "previous": 1}
    assert outcomes(three_versions) == [("promote", 1, None, "moved"), ("promote", 3, 1, "moved")]


def test_rollbacks_go_back_through_the_champions_and_stop_at_the_first(
    three_versions: Path, client: MlflowClient
) -> None:
    for version, expected in ((1, None), (2, 1), (3, 2)):
        promote(three_versions, version, expected)
    assert rollback("toy", three_versions, reason="complaints", by="test").version == 2
    assert client.get_registered_model("toy").aliases == {"champion": 2, "previous": 1}
    assert rollback("toy", three_versions, reason="more of them", by="test").version == 1
    with pytest.raises(ModelError, match="toy has no champion before version 1"):
        rollback("toy", three_versions, reason="?", by="test")
    assert version_with("toy", "champion", three_versions) == 1
    last = history("toy", three_versions)[-1]
    assert (last.action, last.champion, last.reason, last.by) == ("rollback", 2, "more of them", "test")


def test_a_decision_against_another_champion_moves_nothing(three_versions: Path) -> None:
    promote(three_versions, 1, None)
    promote(three_versions, 2, 1)
    with pytest.raises(StageError, match="the champion of toy is version 2, the decision was made against version 1"):
        promote(three_versions, 3, 1)
    assert version_with("toy", "champion", three_versions) == 2
    assert outcomes(three_versions)[-1] == ("promote", 3, 2, "refused")


def test_poisoned_weights_fail_the_smoke_test_and_the_champion_goes_on(three_versions: Path) -> None:
    promote(three_versions, 1, None)
    poison(three_versions, 2)
    with pytest.raises(StageError, match="version 2 of toy fails its smoke test: .* not the weights that were regis"):
        promote(three_versions, 2, 1)
    assert version_with("toy", "champion", three_versions) == 1
    assert outcomes(three_versions)[-1] == ("promote", 2, 1, "refused")


def test_another_answer_fails_the_smoke_test(three_versions: Path) -> None:
    [path] = (three_versions / ".kshot/mlartifacts").rglob("smoke_test.safetensors")
    call = load_file(path)
    save_file(call | {"expected": call["expected"] + torch.tensor([[0.001, -0.001]])}, path)
    with pytest.raises(StageError, match=r"fails its smoke test: it answers \[\[0\.\d+ +0\.\d+\]\]; need"):
        promote(three_versions, 2, None)
    assert version_with("toy", "champion", three_versions) is None


def test_a_way_back_that_was_poisoned_is_refused(three_versions: Path) -> None:
    promote(three_versions, 1, None)
    promote(three_versions, 2, 1)
    poison(three_versions, 1)
    with pytest.raises(StageError, match="version 1 of toy fails its smoke test"):
        rollback("toy", three_versions, reason="complaints", by="test")
    assert version_with("toy", "champion", three_versions) == 2


@pytest.mark.parametrize("last_call", ["set_registered_model_alias", "delete_registered_model_alias"])
def test_a_move_that_died_is_carried_out_by_whoever_looks_next(
    three_versions: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, last_call: str
) -> None:
    promote(three_versions, 1, None)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, last_call, dies)
        with pytest.raises(Killed):
            promote(three_versions, 3, 1)
    assert outcomes(three_versions) == [("promote", 1, None, "moved"), ("promote", 3, 1, "moved")]
    assert client.get_registered_model("toy").aliases == {"champion": 3, "previous": 1}


def test_a_registry_that_fails_in_the_middle_keeps_its_aliases(
    three_versions: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(three_versions, 1, None)
    promote(three_versions, 2, 1)
    before = client.get_registered_model("toy").aliases
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_registered_model_alias", fails)
        with pytest.raises(OSError, match="disk full"):
            promote(three_versions, 3, 2)
    assert client.get_registered_model("toy").aliases == before
    assert outcomes(three_versions)[-1] == ("promote", 3, 2, "refused")


def test_an_alias_set_by_other_means_is_noted(three_versions: Path, client: MlflowClient) -> None:
    promote(three_versions, 1, None)
    client.set_registered_model_alias("toy", "champion", "2")
    promote(three_versions, 3, 2)
    assert outcomes(three_versions)[1:] == [("outside", 2, 1, "moved"), ("promote", 3, 2, "moved")]
    assert rollback("toy", three_versions, reason="complaints", by="test").version == 2


def test_a_decision_is_stored_with_its_version_in_tags_and_as_a_file(
    three_versions: Path, client: MlflowClient
) -> None:
    record_decision("toy", 2, three_versions, verdict="worse", reason="worse: -1", decision={"promote": False})
    version = client.get_model_version("toy", "2")
    assert version.tags.items() >= {"promotion": "worse", "promotion_reason": "worse: -1"}.items()
    [file] = client.list_artifacts(version.run_id, "promotion")
    assert json.loads(Path(client.download_artifacts(version.run_id, file.path)).read_text()) == {"promote": False}


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [("other", 1, "no registered model 'other'; known: toy"), ("toy", 9, "toy has no version 9; known: 1, 2, 3")],
)
def test_what_is_not_there_is_named(three_versions: Path, name: str, version: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        move_champion(name, three_versions, version=version, expected=None, reason="", by="test")
    with pytest.raises(ModelError, match="toy has no champion: version 3 has not been decided on; next: kshot promote"):
        rollback("toy", three_versions, reason="", by="test")


def test_a_model_without_champion_says_which_version_was_refused_and_why(three_versions: Path) -> None:
    record_decision("toy", 3, three_versions, verdict="first", reason="first; accuracy 10 %, need 60 %", decision={})
    with pytest.raises(
        ModelError,
        match=r"^toy has no champion: version 3 was not promoted \(first; accuracy 10 %, need 60 %\); "
        r"next: kshot promote --version 3, or use models:/toy/3 as it is$",
    ):
        fetch_model("models:/toy@champion", three_versions)


N_RACES = 100


def test_of_two_promotions_at_once_one_wins_a_hundred_times_and_no_entry_is_lost(
    registry: str, three_versions: Path
) -> None:
    promote(three_versions, 1, None)
    race((three_versions, three_versions), MlflowClient(tracking_uri=registry), N_RACES)
    raced = [move for move in history("toy", three_versions) if move.reason == "race" or move.outcome == "refused"]
    assert [move.outcome for move in raced].count("moved") == N_RACES
    assert [move.outcome for move in raced].count("refused") == N_RACES


def dies(*arguments: Any, **keywords: Any) -> None:
    raise Killed


def fails(*arguments: Any, **keywords: Any) -> None:
    raise OSError("disk full")
