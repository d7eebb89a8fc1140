"""Looks at what a service was asked, and says where it drifts: by an event, on which train/retrain-on-drift begins.

python -m flows.monitor, or the deployment monitor/monitor. A model that was told of is not told of again before the
cool-down is over, however often this looks.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.prefect_server import prefect_api
from flows.stage_task import completed, failed
from flows.summary import terminal
from kshot.errors import KshotError
from kshot.printing import one_line, unstyled
from kshot.runtime.files import json_bytes
from kshot.workspace import Workspace

DRIFTED = "kshot.model.drifted"  # an event
_TOLD = "drift-told.json"  # beside the log of the service: the time at which each model was told of


@dataclass(frozen=True, kw_only=True)
class Monitored:
    """What was found in each gallery, and the models that an event tells of."""

    found: dict[str, str]
    told: tuple[str, ...]

    def __str__(self) -> str:
        words = "; ".join(f"{gallery}: {verdict}" for gallery, verdict in self.found.items()) or "no gallery was asked"
        return f"{words}; told of {', '.join(self.told)}" if self.told else words


@flow(name="monitor", persist_result=False)
def monitor_flow(
    root: Path = Path(),
    answers: Path | None = None,
    gallery: str = "",
    window: int = 200,
    reference: int = 200,
    cool_down_h: float = 24.0,
) -> Monitored:
    """Compare the last answers in the log `answers` of a service with the first; an event for a model that drifts."""
    try:
        done = look(root.resolve(), answers, gallery, window, reference, cool_down_h, return_state=True).result()
        return completed(str(done), done)
    except KshotError as error:
        return failed(error, Monitored)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="look")
def look(root: Path, answers: Path | None, gallery: str, window: int, reference: int, cool_down_h: float) -> Monitored:
    from kshot.registry.watched import watch_galleries  # here and not above: it imports torch and mlflow

    log = answers or Workspace(root).answers
    found, told = {}, []
    try:
        for one, page in watch_galleries(Workspace(root), log, gallery, n_window=window, n_reference=reference):
            get_run_logger().info(f"{one.gallery}: {one.verdict}; {page}")
            found[one.gallery] = one.verdict
            if one.drift.found and one.model not in told and _is_due(log / _TOLD, one.model, cool_down_h):
                told.append(one.model)
                emit_event(
                    DRIFTED,
                    resource={
                        "prefect.resource.id": f"kshot.model.{one.model.removeprefix('models:/').replace('/', '.')}",
                        "prefect.resource.name": one.model,
                    },
                    payload={"words": f"{one.gallery}: {one.verdict}", "gallery": one.gallery},
                )
    except KshotError as error:
        return failed(error, Monitored)
    done = Monitored(found=found, told=tuple(told))
    return completed(str(done), done)


def _is_due(kept: Path, model: str, cool_down_h: float) -> bool:
    """Whether the model was not told of within the cool-down; from now on it was."""
    times = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    now = datetime.now(UTC)
    last = times.get(model)
    if last is not None and now - datetime.fromisoformat(last) < timedelta(hours=cool_down_h):
        return False
    unfinished = kept.with_suffix(".unfinished")
    unfinished.write_bytes(json_bytes({**times, model: now.isoformat()}))
    unfinished.replace(kept)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.monitor", description=monitor_flow.__doc__)
    parser.add_argument("gallery", nargs="?", default="", help="each that was asked about, where not given")
    parser.add_argument("--answers", type=Path, help="the log of a service; .kshot/answers where not given")
    given = parser.parse_args()
    console = terminal()
    try:
        root = Workspace.find(Path.cwd()).root
        with prefect_api(root, console.print):
            done = monitor_flow(root, given.answers, given.gallery, return_state=True).result()
    except KshotError as error:
        console.print(unstyled(f"error: {one_line(str(error))}"), style="red", soft_wrap=True)
        return error.exit_code
    console.print(unstyled(str(done)), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
