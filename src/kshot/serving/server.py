"""The process of a service: from a model's address to answers on a port, until it is asked to end."""

import asyncio
import json
import logging
import signal
import sys
from asyncio import TimerHandle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kshot.errors import ConfigError
from kshot.runtime.process import ProcessSettings, set_up_process
from kshot.serving.access import KEYS_VARIABLE, read_keys
from kshot.serving.app import build_app
from kshot.serving.files import open_files
from kshot.serving.galleries import GalleryStore
from kshot.serving.gate import allowed_hosts, local_names
from kshot.serving.log import AnswerLog
from kshot.serving.served_model import model_source
from kshot.serving.service import Service
from kshot.serving.settings import ServiceSettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SWITCH_S = 0.0002  # Python's 5 ms would let the thread of inference wait that long, at each operation, for a busy loop
_LOGGER = logging.getLogger("kshot.service")


def serve(
    address: str,
    root: Path,
    *,
    host: str,
    port: int,
    galleries: str,
    log: Path,
    keys_file: Path | None,
    names: tuple[str, ...],
    settings: ServiceSettings,
) -> None:
    """Answer until SIGTERM or SIGINT. `names` are what the service is called by those who ask, where it has keys.

    Raises ModelError for a model that does not answer as it should, and ConfigError where others than this machine
    could ask without a key.
    """
    keys = read_keys(keys_file)
    if not keys and host not in LOOPBACK:
        raise ConfigError(
            f"found the host {host} and no key, so that everyone who reaches it could ask; need a key, or "
            f"--host 127.0.0.1; next: kshot serve-key NAME --write --keys FILE, then --keys FILE or {KEYS_VARIABLE}"
        )
    _set_up_logging()
    sys.setswitchinterval(_SWITCH_S)
    set_up_process(ProcessSettings())
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one core is left for requests
    source = model_source(address, root)
    model = source.load()
    answers = AnswerLog(log, settings.log) if settings.log.keep else None
    service = Service(source, model, GalleryStore(open_files(galleries)), settings, answers)
    hosts = allowed_hosts(names) if keys else local_names(host)
    app = build_app(service, keys, settings.limits, hosts)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_protocol(settings.limits.headers_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=settings.limits.connections,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        timeout_keep_alive=30,
        proxy_headers=False,
    )
    open_to = "everyone on this machine, without a key" if not keys else "whoever has a key"
    _LOGGER.info("%s on http://%s:%d, open to %s", model.name, host, port, open_to)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again once it has ended, which is no failure
    uvicorn.Server(config).run()


def _protocol(headers_s: float) -> type[asyncio.Protocol]:
    class Protocol(HttpToolsProtocol):
        """Closes a connection whose request does not begin in time: uvicorn itself waits for ever."""

        _timer: TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._wait()
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def _wait(self) -> None:
            self._timer = self.loop.call_later(headers_s, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol


class _JsonLines(logging.Formatter):
    """A JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        message = record.getMessage()
        if message:
            fields["message"] = message
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    for name in ("kshot.service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
