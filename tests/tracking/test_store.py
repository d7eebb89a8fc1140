"""A tracking server that is of no use is named soon, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from kshot.errors import StageError
from kshot.tracking import fetch_model, history
from kshot.tracking.store import check_server
from tests.fake_servers import NOBODY, answering, black_hole


def refusal(url: str, words: str) -> str:
    return rf"^MLFLOW_TRACKING_URI is {url}: {words}; need an MLflow server; next: start that server, .* unset MLFLOW"


@pytest.mark.parametrize(
    ("status", "words"),
    [(200, "it answers with a page of something else"), *((code, f"it answers {code} .*") for code in (401, 404, 502))],
)
def test_a_page_of_something_else_is_no_tracking_server(status: int, words: str) -> None:
    with answering(status) as url, pytest.raises(StageError, match=refusal(url, words)):
        check_server(url)


def test_silence_is_one_line_for_every_question_and_nothing_is_left_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    with pytest.raises(StageError, match=refusal(NOBODY, "nothing listens there")):
        fetch_model("models:/toy@champion", tmp_path)
    with pytest.raises(StageError, match=refusal(NOBODY, "nothing listens there")):
        history("toy", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mlflow.get_tracking_uri() == before


def test_a_port_that_never_answers_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kshot.tracking.store.PATIENCE_S", 0.2)
    with black_hole() as url, pytest.raises(StageError, match=refusal(url, "no answer in 5 s")):
        check_server(url)


def test_an_answer_in_json_is_a_tracking_server() -> None:
    with answering(200, b"{}") as url:
        check_server(url)


def test_a_database_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        StageError,
        match=r"^MLFLOW_TRACKING_URI is postgresql://127.0.0.1:9/x: Connection refused; need a PostgreSQL database; ",
    ):
        history("toy", tmp_path, "postgresql://me:secret@127.0.0.1:9/x")


NOTE_AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Finder())
import kshot.tracking
"""


def test_telemetry_is_off_before_mlflow_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    command = [sys.executable, "-W", "ignore", "-c", NOTE_AT_IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "true\n"
