"""A real MLflow server of this machine, and a proxy in front of it that fails when told to."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kshot.servers import LOCALHOST, answers, free_port


@contextmanager
def tracking_server(database: str, files: Path) -> Iterator[str]:
    """The URL of an MLflow server on this database."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kshot.runtime.lifeline", "mlflow", "server"),
            *("--host", LOCALHOST, "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", database, "--artifacts-destination", str(files)),
        ],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # a third of the time to start
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not answers(f"http://{LOCALHOST}:{port}/health"):
            assert process.poll() is None, "the MLflow server ended"
            time.sleep(0.1)
        yield f"http://{LOCALHOST}:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


class Proxy:
    """Passes everything on. While `down`, it hangs up; and it keeps the answer to a path in `loses`, as often as given.

    `down_after`: the path after whose answer it is down.
    """

    def __init__(self) -> None:
        self.url = ""
        self.down = False
        self.down_after = ""
        self.loses: dict[str, int] = {}


@contextmanager
def proxy_to(server: str) -> Iterator[Proxy]:
    proxy, upstream = Proxy(), urlsplit(server).netloc

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            body = self.body()
            if proxy.down:
                return
            connection = http.client.HTTPConnection(upstream)
            headers = {name: value for name, value in self.headers.items() if name != "Transfer-Encoding"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            path = self.path.partition("?")[0]
            if proxy.loses.get(path):
                proxy.loses[path] -= 1
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            proxy.down = path == proxy.down_after

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: Any) -> None:
            pass

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.pass_on)
    with ThreadingHTTPServer((LOCALHOST, 0), Handler) as listening:
        proxy.url = f"http://{LOCALHOST}:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            listening.shutdown()
            thread.join()
