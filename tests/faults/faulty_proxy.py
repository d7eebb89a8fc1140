"""A proxy before a server that answers with errors, hangs or hangs up, for what clients make of it."""

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

UNAVAILABLE, STALL, CUT_REQUEST, CUT_ANSWER = "503", "stall", "cut request", "cut answer"
_CHUNK = 2**14


@dataclass
class Proxy:
    """What is done to a request is asked of `fault`, given its method and path: one of the above, or "" for nothing."""

    url: str
    fault: Callable[[str, str], str] = lambda method, path: ""
    cut_after: int = 0
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, what was done to it) in order."""


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """Every connection carries one request, so that each is decided on."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listening:
        proxy = Proxy(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_serve, args=(client, port, proxy, ended), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def sometimes(what: str, share: float, seed: int) -> Callable[[str, str], str]:
    draw = random.Random(seed)
    return lambda method, path: what if draw.random() < share else ""


def _serve(client: socket.socket, port: int, proxy: Proxy, ended: threading.Event) -> None:
    with closing(client), suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (received := client.recv(_CHUNK)):
                return
            head += received
        lines, _, begun = head.partition(b"\r\n\r\n")
        method, path, _ = lines.split(b"\r\n")[0].decode().split(" ", 2)
        what = proxy.fault(method, path)
        proxy.seen.append((method, path, what))
        if what == STALL:
            ended.wait()
            return
        if what == UNAVAILABLE:
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            client.settimeout(1)
            while client.recv(_CHUNK):
                continue
            return
        kept = [line for line in lines.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
        if b"expect: 100-continue" in lines.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        with closing(socket.create_connection(("127.0.0.1", port))) as server:
            server.sendall(b"\r\n".join([*kept, b"Connection: close"]) + b"\r\n\r\n" + begun)
            limits = [proxy.cut_after if what == cut else None for cut in (CUT_REQUEST, CUT_ANSWER)]
            to_server = threading.Thread(target=_pass, args=(client, server, limits[0]), daemon=True)
            to_server.start()
            _pass(server, client, limits[1])


def _pass(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    """Until the source ends, or `limit` bytes have gone: then both hang up."""
    passed = 0
    with suppress(OSError):
        while received := source.recv(_CHUNK):
            if limit is not None and passed + len(received) > limit:
                target.sendall(received[: limit - passed])
                for one in (source, target):
                    one.shutdown(socket.SHUT_RDWR)
                return
            target.sendall(received)
            passed += len(received)
        target.shutdown(socket.SHUT_WR)
