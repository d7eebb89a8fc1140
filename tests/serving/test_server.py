"""The process of a service: how it begins and ends, and what connections that never finish do to it."""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from kshot.serving.files import FolderFiles
from kshot.serving.galleries import GalleryStore
from tests.serving.service_process import Running, model_folder, running
from tests.serving.small_service import PNG, picture

EXAMPLES = "/v1/galleries/shapes/classes/{}/examples"


def show(service: Running) -> None:
    for pattern in (1, 2):
        path = service.url + EXAMPLES.format(f"pattern {pattern}")
        assert httpx.put(path, content=picture(pattern), headers=PNG).status_code == 201


def test_every_acknowledged_example_outlives_a_kill_in_the_middle_of_writes(tmp_path: Path) -> None:
    """Eight clients write 200 pictures; the process is killed at a drawn moment, and starts again on what it left."""
    acknowledged: list[bytes] = []
    sent = iter([picture(1, number) for number in range(200)])
    lock = threading.Lock()

    def write(service: Running) -> None:
        with httpx.Client() as client:
            while True:
                with lock:
                    content = next(sent, None)
                if content is None:
                    return
                try:
                    done = client.put(service.url + EXAMPLES.format("a"), content=content, headers=PNG)
                except httpx.TransportError:
                    return
                if done.status_code == 201:
                    acknowledged.append(content)

    with running(tmp_path) as service:
        threads = [threading.Thread(target=write, args=(service,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        wanted = random.Random(1).randint(30, 120)
        while len(acknowledged) < wanted:
            time.sleep(0.001)
        service.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert wanted <= len(acknowledged) < 200
    store = GalleryStore(FolderFiles(tmp_path / ".kshot" / "galleries"))
    examples = store.contents("shapes").examples
    kept = {example.id: store.read("shapes", [example])[0] for example in examples}
    assert {id_: sha256(content).hexdigest()[:32] for id_, content in kept.items()} == {id_: id_ for id_ in kept}
    assert {sha256(content).hexdigest()[:32] for content in acknowledged} <= kept.keys()
    with running(tmp_path) as service:
        found = httpx.get(f"{service.url}/v1/galleries/shapes").json()["classes"][0]["examples"]
        assert {example["id"] for example in found} == kept.keys()


def test_requests_under_way_are_answered_when_the_service_is_asked_to_end(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        show(service)
        answers: list[int] = []
        ask = {"content": picture(1, 9), "headers": PNG}

        def keep_asking() -> None:
            with httpx.Client() as client:
                while True:
                    try:
                        answers.append(client.post(f"{service.url}/v1/galleries/shapes/classify", **ask).status_code)  # type: ignore[arg-type]
                    except httpx.ConnectError:
                        return  # it takes no more
                    except httpx.TransportError:
                        answers.append(0)  # one that was begun is not answered
                        return

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(answers) < 40:
            time.sleep(0.005)
        assert service.stop() == 0
        for thread in threads:
            thread.join()
    # A kept connection that is idle is closed; a request that is sent into it at that very moment has no answer.
    assert set(answers) <= {200, 0} and answers.count(0) <= 4
    assert answers.count(200) >= 40


def test_a_connection_that_sends_no_whole_request_is_closed_and_others_are_answered(tmp_path: Path) -> None:
    settings = tmp_path / "service.yaml"
    settings.write_text("limits: {headers_s: 1.0, body_s: 1.0}\n")
    with running(tmp_path, "--settings", str(settings)) as service:
        show(service)
        half = b"GET /v1/galleries HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
        with ExitStack() as opened:
            address = ("127.0.0.1", service.port)
            slow = [opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(50)]
            for connection in slow:
                connection.sendall(half)
            classify = f"{service.url}/v1/galleries/shapes/classify"
            done = httpx.post(classify, content=picture(1, 9), headers=PNG, timeout=10)
            assert done.status_code == 200
            for connection in slow:
                assert connection.recv(1) == b""


def test_a_body_that_trickles_is_refused(tmp_path: Path) -> None:
    settings = tmp_path / "service.yaml"
    settings.write_text("limits: {body_s: 0.5}\n")
    with running(tmp_path, "--settings", str(settings)) as service:
        show(service)
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(
                b"POST /v1/galleries/shapes/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"3 bytes in 0.5 s" in answer


def test_the_log_is_json_with_a_line_for_each_request(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        show(service)
        done = httpx.get(f"{service.url}/v1/galleries")
        service.stop()
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request") == done.headers["x-request-id"]]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/galleries", 200)
    assert "open to everyone on this machine, without a key" in lines[0]["message"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["{model}", "--host", "0.0.0.0"], "found the host 0.0.0.0 and no key"),
        (["{model}", "--keys", "none.txt"], "no keys at none.txt"),
        (["{model}", "--settings", "bad.yaml"], "bad.yaml: limits.items"),
        (["nowhere"], "no model in nowhere"),
        (["models:/none@champion"], "no model registry"),
        (["{model}", "--galleries", "nosuch://x"], "nosuch://x"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_a_code(tmp_path: Path, options: list[str], error: str) -> None:
    model = model_folder(tmp_path)
    (tmp_path / "bad.yaml").write_text("limits: {items: none}\n")
    arguments = [option.format(model=model) for option in options]
    done = subprocess.run(
        [sys.executable, "-m", "kshot", "serve", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and error in line
