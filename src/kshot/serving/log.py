"""What a service was asked and answered, for those who watch it: Parquet files by day, as many as may be kept.

    LOG/answers/2026-11-27/TIME-ID.parquet      a row per item: features, answer, latency; the picture where asked for
    LOG/feedback/2026-11-27/TIME-ID.parquet     a row per correction: which answer, and the right class

Rows are gathered and written together. What a killed service had not written yet is lost, at most `flush_s` of it.
"""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from kshot.serving.settings import LogSettings

if TYPE_CHECKING:
    from kshot.serving.service import Answer

ANSWERS, FEEDBACK = "answers", "feedback"
_LOGGER = logging.getLogger("kshot.service")
_MOST_WAITING = 20  # times the rows that are written at once: beyond it they are dropped, and counted


@dataclass(frozen=True, kw_only=True)
class LoggedAnswer:
    """A request and its answers; features (Q, D)."""

    gallery: str
    model: str
    answers: tuple["Answer", ...]
    features: NDArray[np.float32]
    contents: Sequence[bytes]
    latency_ms: float


class AnswerLog:
    def __init__(self, folder: Path, settings: LogSettings) -> None:
        self._folder, self._settings = folder, settings
        self._rows: dict[str, list[dict[str, Any]]] = {ANSWERS: [], FEEDBACK: []}
        self._lock = Lock()
        self.n_dropped = 0

    def answered(self, given: LoggedAnswer) -> tuple["Answer", ...]:
        """The answers, each with a name by which it can be corrected."""
        named = tuple(replace(answer, id=uuid4().hex) for answer in given.answers)
        now = datetime.now(UTC)
        for number, answer in enumerate(named):
            self._put(
                ANSWERS,
                {
                    "time": now,
                    "id": answer.id,
                    "gallery": given.gallery,
                    "model": given.model,
                    "class_name": answer.class_name,
                    "probability": answer.probability,
                    "known": answer.known,
                    "threshold": answer.threshold,
                    "unknown": answer.unknown,
                    "latency_ms": given.latency_ms,
                    "features": given.features[number],
                    "picture": given.contents[number] if self._settings.pictures else None,
                },
            )
        return named

    def corrected(self, answer_id: str, class_name: str) -> None:
        self._put(FEEDBACK, {"time": datetime.now(UTC), "id": answer_id, "class_name": class_name})

    async def keep_writing(self) -> None:
        """Write what there is, every `flush_s`; never ends."""
        while True:
            await asyncio.sleep(self._settings.flush_s)
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Write all rows that there are, and take out what is too old or too much."""
        for kind in (ANSWERS, FEEDBACK):
            with self._lock:
                rows, self._rows[kind] = self._rows[kind], []
            if rows:
                try:
                    _write_rows(self._folder / kind, kind, rows)
                except OSError as error:
                    self.n_dropped += len(rows)
                    _LOGGER.warning("%d rows of the log are lost: %s", len(rows), error)
        self._bound()

    def _put(self, kind: str, row: dict[str, Any]) -> None:
        with self._lock:
            if len(self._rows[kind]) >= _MOST_WAITING * self._settings.rows_at_once:
                self.n_dropped += 1
            else:
                self._rows[kind].append(row)

    def _bound(self) -> None:
        first = (datetime.now(UTC) - timedelta(days=self._settings.days)).date().isoformat()
        for day in self._folder.glob("*/????-??-??"):
            if day.name < first:
                shutil.rmtree(day, ignore_errors=True)
        files = sorted(self._folder.glob(f"{ANSWERS}/*/*.parquet"), key=lambda path: (path.parent.name, path.name))
        sizes = [path.stat().st_size for path in files]
        too_many = sum(sizes) - int(self._settings.gib * 2**30)
        for path, size in zip(files, sizes, strict=True):
            if too_many <= 0:
                break
            path.unlink(missing_ok=True)
            too_many -= size


def _write_rows(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    now = datetime.now(UTC)
    day = folder / now.date().isoformat()
    day.mkdir(parents=True, exist_ok=True)
    target = day / f"{now:%H%M%S%f}-{uuid4().hex[:8]}.parquet"
    unfinished = target.with_suffix(".unfinished")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(kind)), unfinished)
    unfinished.replace(target)


def schema(kind: str) -> Any:
    """The columns of a file."""
    import pyarrow as pa

    common = [("time", pa.timestamp("us", tz="UTC")), ("id", pa.string())]
    if kind == FEEDBACK:
        return pa.schema([*common, ("class_name", pa.string())])
    texts = [(name, pa.string()) for name in ("gallery", "model", "class_name")]
    numbers = [(name, pa.float64()) for name in ("probability", "known", "threshold")]
    return pa.schema(
        [
            *common,
            *texts,
            *numbers,
            ("unknown", pa.bool_()),
            ("latency_ms", pa.float64()),
            ("features", pa.list_(pa.float32())),
            ("picture", pa.binary()),
        ]
    )
