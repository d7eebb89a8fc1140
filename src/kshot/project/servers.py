"""Servers of this machine: a free port for one, and whether one answers."""

import socket
import urllib.request

LOCALHOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Whether a server there answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  # an http address made here or by `make ui`
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
