"""The event that tells of new data, as a server receives it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from kshot.errors import ConfigError, StageError
from kshot.project import announce as module
from kshot.project.announce import announce, check_can_announce
from kshot.workspace import Workspace

POINTER = "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: data\n"


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[tuple[str, Any, str | None]]]]:
    received: list[tuple[str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, json.loads(body), self.headers.get("Authorization")))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/api", received
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(module, "run_dvc", lambda arguments, *_, **__: commands.append(list(arguments)))
    (tmp_path / "data.dvc").write_text(POINTER)
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return commands


def test_the_event_has_the_pointer_and_the_key(
    tmp_path: Path, pushed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(204) as (url, received):
        monkeypatch.setenv("PREFECT_API_URL", url)
        announce(Workspace(tmp_path), "parts", print)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "kshot:secret")
        announce(Workspace(tmp_path), "parts", print)
    assert pushed == [["push", "data.dvc"]] * 2
    path, (event,), key = received[0]
    assert (path, key) == ("/api/events", None)
    assert event["event"] == "kshot.dataset.announced"
    assert event["resource"]["prefect.resource.id"] == "kshot.dataset.parts"
    assert event["payload"] == {"dataset": "parts", "data_pointer": POINTER}
    assert received[1][2] == "Basic a3Nob3Q6c2VjcmV0"
    assert received[0][1][0]["id"] != received[1][1][0]["id"]


def test_a_server_that_refuses_or_is_not_there_is_named_with_the_way_on(
    tmp_path: Path, pushed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(401) as (url, _):
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(StageError, match=r"was not told of parts: .*401.*; next: kshot announce parts"):
            announce(Workspace(tmp_path), "parts", print)
    with pytest.raises(StageError, match=r"nothing listens there.*; next: kshot announce parts"):
        announce(Workspace(tmp_path), "parts", print)
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(ConfigError, match="PREFECT_API_URL names no Prefect server; need one to tell; next: set it"):
        check_can_announce()
