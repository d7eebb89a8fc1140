"""The promotion gate: decide on a registered version, and move the champion alias if it is to be moved.

The train flow runs it after it registered. By hand, also as the approval that params.yaml may ask for:
python -m flows.promote --version 3 --approve, or the promote deployment with these parameters.
"""

import argparse
import sys
from pathlib import Path

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.prefect_server import prefect_api
from flows.stage_task import completed, failed
from flows.summary import Promotion, terminal
from kshot.errors import KshotError
from kshot.printing import one_line, unstyled
from kshot.workspace import Workspace

PROMOTED, REFUSED, WAITS = "kshot.model.promoted", "kshot.model.refused", "kshot.model.waits"  # events
_EVENTS = {"promoted": PROMOTED, "refused": REFUSED, "waits for approval": WAITS}
NOT_PROMOTED = 3  # the exit code: neither a mistake nor a failure


@flow(name="promote", persist_result=False)
def promote_flow(root: Path = Path(), version: int | None = None, approve: bool = False) -> Promotion:
    """Decide on `version`, the challenger where None; `approve` is a person's approval."""
    try:
        promotion = promote(root.resolve(), version, approve, return_state=True).result()
        return completed(str(promotion), promotion)
    except KshotError as error:
        return failed(error, Promotion)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="promote")
def promote(root: Path, version: int | None, approve: bool) -> Promotion:
    """Move the alias where the gate says so; nothing is retried: what refuses once refuses again."""
    get_run_logger().info("deciding whether the version becomes champion ...")
    try:
        done = _promote(root, version, approve)
    except KshotError as error:
        return failed(error, Promotion)
    if done.waiting:
        create_markdown_artifact(key="promotion-waits", markdown=_how_to_approve(done), description=str(done))
    return completed(str(done), done)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=promote_flow.__doc__)
    parser.add_argument("--version", type=int, help="of register.model_name; the challenger where not given")
    parser.add_argument("--approve", action="store_true", help="a person's yes, where params.yaml asks for one")
    given = parser.parse_args()
    console = terminal()
    try:
        root = Workspace.find(Path.cwd()).root
        with prefect_api(root, console.print):
            done = promote_flow(root, given.version, given.approve, return_state=True).result()
    except KshotError as error:
        console.print(unstyled(f"error: {one_line(str(error))}"), style="red", soft_wrap=True)
        return error.exit_code
    console.print(unstyled(str(done)), soft_wrap=True)
    return 0 if done.is_champion else NOT_PROMOTED


def _promote(root: Path, version: int | None, approve: bool) -> Promotion:
    from kshot.config import load_params  # here and not above: these import torch and mlflow
    from kshot.registry.gate import decide_promotion
    from kshot.registry.page import renew_run_reports

    outcome = decide_promotion(
        root,
        load_params(Workspace(root).params),
        by=f"flow run {runtime.flow_run.id}",
        version=version,
        approved=approve,
        report=get_run_logger().info,
    )
    if event := _EVENTS.get(outcome.result):
        emit_event(
            event,
            resource={
                "prefect.resource.id": f"kshot.model.{outcome.name}.{outcome.version}",
                "prefect.resource.name": f"{outcome.name} version {outcome.version}",
            },
            payload={"words": str(outcome)},
        )
    renew_run_reports(outcome.name, (outcome.version, outcome.champion), root, get_run_logger().warning)
    return Promotion(
        name=outcome.name,
        version=outcome.version,
        is_champion=outcome.is_champion,
        waiting=outcome.result == "waits for approval",
        words=str(outcome),
    )


def _how_to_approve(promotion: Promotion) -> str:
    return (
        f"**{promotion}**\n\nTo approve, run the deployment `promote/promote` with "
        f"`version: {promotion.version}` and `approve: true`, or\n\n"
        f"    .venv/bin/python -m flows.promote --version {promotion.version} --approve\n"
    )


if __name__ == "__main__":
    sys.exit(main())
