"""`kshot serve` as a process of its own, on a port that was free."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from kshot.model import save_model
from tests.serving.small_service import saved_model


@dataclass
class Running:
    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def model_folder(folder: Path) -> Path:
    save_model(folder / "model", saved_model())
    return folder / "model"


def start(folder: Path, options: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "kshot", "serve", *options]
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """A service in `folder` on a small model, which is there when this returns; killed at the end."""
    port, log = free_port(), folder / "service.log"
    model = folder / "model"
    if not model.exists():
        model_folder(folder)
    with log.open("ab") as file:
        process = start(folder, [str(model), "--port", str(port), *options], file)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
        yield Running(process, port, log)
    finally:
        process.kill()
        process.wait()
