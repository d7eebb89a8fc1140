"""Trains on revisions of the repository one after the other, each as a run of the deployment train/nightly.

python -m flows.backfill v1 v2 3fa9c01: data.dvc of each revision names its dataset. What was trained before is found.
"""

import argparse
import sys
from dataclasses import dataclass

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from flows.prefect_server import check_configured
from flows.stage_task import completed, failed
from flows.summary import terminal
from kshot.errors import KshotError, StageError
from kshot.printing import one_line, unstyled
from kshot.project.run_folder import REVISION

_DEPLOYMENT = "train/nightly"


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """How the run of each revision ended."""

    ended: dict[str, str]

    def __str__(self) -> str:
        return "; ".join(f"{revision}: {words}" for revision, words in self.ended.items())


@flow(name="backfill", persist_result=False)
def backfill_flow(revisions: list[str]) -> Backfill:
    """Train on each of `revisions`; one that fails does not keep the next from its turn."""
    log = get_run_logger().info
    ended: dict[str, str] = {}
    failures = 0
    for revision in revisions:
        log(f"{revision}: waiting for its run of {_DEPLOYMENT} ...")
        run: FlowRun = run_deployment(  # type: ignore[assignment]  # its other form is awaited
            _DEPLOYMENT, job_variables={"env": {REVISION: revision}}, tags=["backfill"]
        )
        state = run.state
        failures += state is None or not state.is_completed()
        ended[revision] = "no state" if state is None else f"{state.name}, {state.message or 'no message'}"
        log(f"{revision}: {ended[revision]}")
    done = Backfill(ended=ended)
    if failures:
        return failed(StageError(f"{failures} of {len(revisions)} revisions failed: {done}"), Backfill)
    return completed(str(done), done)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.backfill", description=backfill_flow.__doc__)
    parser.add_argument("revisions", nargs="+", help="commits, tags or branches, oldest first")
    given = parser.parse_args()
    console = terminal()
    try:
        check_configured()
        done = backfill_flow(given.revisions, return_state=True).result()
    except KshotError as error:
        console.print(unstyled(f"error: {one_line(str(error))}"), style="red", soft_wrap=True)
        return error.exit_code
    console.print(unstyled(str(done)), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
