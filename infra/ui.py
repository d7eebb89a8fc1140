"""make ui: the MLflow and Prefect pages of this workspace, on this machine only, until Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import flows  # noqa: F401  # sets Prefect's folder
from flows.prefect_server import running_ui_noted, server_command
from kshot.errors import KshotError, StageError
from kshot.servers import answers, free_port, is_free
from kshot.tracking import default_tracking_uri, prepare_store
from kshot.workspace import Workspace

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Page:
    name: str
    url: str
    health: str
    command: list[str]
    log: Path


def pages(root: Path) -> tuple[Page, Page]:
    logs = Workspace(root).logs
    mlflow_port, prefect_port = _port(5000), _port(4200)
    mlflow = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{Workspace(root).registry_database}"]
    artifacts = ["--default-artifact-root", str(Workspace(root).registry_artifacts)]
    return (
        Page(
            name="MLflow",
            url=f"http://127.0.0.1:{mlflow_port}",
            health=f"http://127.0.0.1:{mlflow_port}/health",
            command=[sys.executable, "-m", "kshot.runtime.lifeline", *mlflow, *store, *artifacts],
            log=logs / "mlflow-ui.log",
        ),
        Page(
            name="Prefect",
            url=f"http://127.0.0.1:{prefect_port}",
            health=f"http://127.0.0.1:{prefect_port}/api/health",
            command=server_command(prefect_port),
            log=logs / "prefect-ui.log",
        ),
    )


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # an exit that ends both servers
    try:
        root = Workspace.find(Path.cwd()).root
        Workspace(root).logs.mkdir(parents=True, exist_ok=True)
        prepare_store(root, default_tracking_uri(root))
        with ExitStack() as stack:
            running = [(page, stack.enter_context(_Server(page))) for page in pages(root)]
            print("starting MLflow and Prefect, ten to thirty seconds ...", flush=True)
            for page, server in running:
                server.wait_until_healthy()
                print(f"{page.name:8} {page.url}", flush=True)
            stack.enter_context(running_ui_noted(root, f"{running[1][0].url}/api"))
            print("Ctrl-C stops both", flush=True)
            while True:
                for _, server in running:
                    server.check()
                time.sleep(1)
    except KeyboardInterrupt:
        print("\nstopped")
        return 0
    except KshotError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


class _Server:
    """A page's process, from `with` to its end."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def __enter__(self) -> "_Server":
        self._output = self._page.log.open("wb")
        self._process = subprocess.Popen(
            self._page.command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends both in order
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONUNBUFFERED": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(_STOP_TIMEOUT_S)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self._output.close()

    def check(self) -> None:
        if self._process.poll() is not None:
            raise StageError(f"{self._page.name} ended with {self._process.returncode}; next: read {self._page.log}")

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not answers(self._page.health):
            self.check()
            if time.monotonic() > deadline:
                raise StageError(
                    f"{self._page.name} gave no answer in {_START_TIMEOUT_S:.0f} s; next: read {self._page.log}"
                )
            time.sleep(0.2)


def _port(usual: int) -> int:
    return usual if is_free(usual) else free_port()


if __name__ == "__main__":
    sys.exit(main())
