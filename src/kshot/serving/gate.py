"""What every request passes before a route sees it, and every answer after: who asks, how much, how long, and a record.

It is plain ASGI around the whole application, so that no route, mounted page or wrong address is left out.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kshot.serving.access import Key, Keys
from kshot.serving.problems import MEDIA_TYPE, ProblemError
from kshot.serving.settings import Limits

REQUEST_LOG = logging.getLogger("kshot.service.requests")
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ASKING = ("/classify",)  # posts that change nothing
_LOCAL_NAMES = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
)
_POLICY = b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
_POLICY += b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_POLICY_OF_DOCS = _POLICY.replace(b"script-src 'self'", b"script-src 'self' 'unsafe-inline'").replace(
    b"style-src 'self'", b"style-src 'self' 'unsafe-inline'"
)


class RequestMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("method", "route", "status")
        self.requests = Counter("kshot_requests", "Requests answered", names, registry=registry)
        self.seconds = Histogram(
            "kshot_request_seconds",
            "From the first byte of a request to the end of its answer",
            ("route",),
            buckets=_BUCKETS_S,
            registry=registry,
        )


@dataclass(frozen=True)
class Gate:
    """`hosts` are the names that a request may be sent to; any, where it is empty.

    `check_room` raises the problem of a full queue, before a question is read: a refusal has to cost little.
    """

    app: ASGIApp
    keys: Keys
    limits: Limits
    metrics: RequestMetrics
    check_room: Callable[[], None]
    hosts: frozenset[bytes] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # no other protocol is spoken here
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 500
        request_id = uuid4().hex
        headers = dict(scope["headers"])
        key: Key | None = None
        docs = scope["path"] == "/docs"

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                policy = (b"content-security-policy", _POLICY_OF_DOCS if docs else _POLICY)
                more = [pair for pair in (*_HEADERS, policy) if pair[0] not in own]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *more]
            await send(message)

        try:
            key = self._admitted(scope, headers)
            if scope["path"].endswith(_ASKING):
                self.check_room()
            limited = _limited(receive, headers, self.limits)
            await self.app(scope, limited, send_marked)
        except ProblemError as problem:
            await send_problem(problem, send_marked)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            took_s = time.perf_counter() - start
            self.metrics.requests.labels(scope["method"], route, status).inc()
            self.metrics.seconds.labels(route).observe(took_s)
            REQUEST_LOG.info(
                "",
                extra={
                    "fields": {
                        "request": request_id,
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "ms": round(1000 * took_s, 2),
                        "key": key.name if key is not None else "",
                    }
                },
            )

    def _admitted(self, scope: Scope, headers: dict[bytes, bytes]) -> Key | None:
        """The key of whoever asks; None where there are no keys. Raises a 401, 403 or 421 problem."""
        if scope["path"] in OPEN_PATHS:
            return None
        host = headers.get(b"host", b"").lower()
        if self.hosts and _without_port(host) not in self.hosts:
            raise ProblemError(
                421,
                "not a name of this service",
                found=f"the host {host.decode('latin-1')!r}",
                needed=", ".join(sorted(name.decode() for name in self.hosts)),
            )
        writes = scope["method"] not in _READING and not scope["path"].endswith(_ASKING)
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2].lower() != host:
            raise ProblemError(
                403,
                "another site asks",
                found=f"the origin {origin.decode('latin-1')!r}",
                needed="a page of this service",
            )
        if not self.keys:
            return None
        key = self.keys.of(headers)
        if key is None:
            raise ProblemError(
                401,
                "no key",
                found="no key that is known",
                needed="the header Authorization: Bearer KEY",
                headers={"WWW-Authenticate": 'Basic realm="kshot: any name, the key as password"'},
            )
        if writes and "write" not in key.scopes:
            raise ProblemError(
                403,
                "the key may not do that",
                found=f"the key {key.name!r} of scope read",
                needed="one of scope read,write",
            )
        return key


async def send_problem(problem: ProblemError, send: Send) -> None:
    body = to_json(problem.document())
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def local_names(host: str) -> frozenset[bytes]:
    """What a service without keys may be called: a page of elsewhere, led here by its own name, is refused."""
    return _LOCAL_NAMES | {host.encode()}


def _limited(receive: Receive, headers: dict[bytes, bytes], limits: Limits) -> Receive:
    """`receive`, within the time and the bytes that a body may take. Raises a 408 or 413 problem."""
    most = limits.body_mib * 2**20
    too_large = ProblemError(
        413,
        "the body is too large",
        found=f"more than {limits.body_mib} MiB",
        needed="less",
        headers={"Connection": "close"},
    )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_large
    deadline = time.monotonic() + limits.body_s
    n_bytes, complete = 0, False

    async def limited() -> Any:
        nonlocal n_bytes, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise ProblemError(
                408,
                "the body takes too long",
                found=f"{n_bytes} bytes in {limits.body_s:g} s",
                needed="the whole body in that time",
                headers={"Connection": "close"},
            ) from None
        n_bytes += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if n_bytes > most:
            raise too_large
        return message

    return limited


def _without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and port.isdigit() else host


def allowed_hosts(given: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in given)
