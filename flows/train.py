"""validate -> task pool -> meta-train -> evaluate, as dvc.yaml has them; then push, register, promote and report.

python -m flows.train runs it here, with a Prefect server of its own where none is configured.
"""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.prefect_server import check_configured, prefect_api
from flows.promote import promote
from flows.stage_task import RETRY_DELAYS_S, completed, failed, is_transient, run_as_task
from flows.summary import (
    Promotion,
    Registered,
    Summary,
    read_scores,
    terminal,
    to_markdown,
    to_terminal,
)
from kshot.errors import KshotError, StageError
from kshot.printing import one_line, unstyled
from kshot.project import dvc
from kshot.project.data_pointer import take_pointer
from kshot.project.dvc import StageRun, stage_order
from kshot.project.lock import hold_workspace
from kshot.project.remote import check_default_remote
from kshot.project.run_folder import pull_data
from kshot.workspace import Workspace

if TYPE_CHECKING:
    from kshot.config import DatasetSettings


RESULT = "train-result"  # the key of its artifact


@flow(name="train", persist_result=False)
def train_flow(root: Path = Path(), data_pointer: str = "") -> Summary:
    """Bring every stage of the workspace `root` up to date, push what they made, register the model, promote it.

    `data_pointer` is the text of a data.dvc to use in place of the one that is there.
    """
    root = root.resolve()
    try:
        with hold_workspace(root, get_run_logger().info):
            close_lost_run(root)
            if data_pointer and take_pointer(Workspace(root), data_pointer):
                pull_data(root, get_run_logger().info)
            _check(root)
            stages = bring_up_to_date(root)
            push(root, return_state=True).result()
            registered = register(root, return_state=True).result()
            promotion_state = promote(root, registered.version, False, return_state=True)
            page = report(root, registered, return_state=True).result()  # also of a version that failed its smoke test
            promotion = promotion_state.result()
            summary = _summarise(root, stages, registered, promotion, page)
            publish(summary)
            return completed(f"{registered}; {promotion}", summary)
    except KshotError as error:
        return failed(error, Summary)


def bring_up_to_date(root: Path) -> tuple[StageRun, ...]:
    """Every stage as a task, also one that is only found to be cached: DVC is started for the others alone."""
    order = stage_order(root)
    unchanged = dvc.unchanged_stages(order, root, get_run_logger().info)
    return tuple(run_as_task(stage, root, is_unchanged=stage in unchanged) for stage in order)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_transient,
    task_run_name="push",
)
def push(root: Path) -> None:
    """Send what the default remote lacks."""
    logger = get_run_logger()
    logger.info("sending what the default remote lacks ...")
    try:
        dvc.push(root, logger.info)
    except StageError as error:
        return failed(error, type(None))
    return completed("pushed", None)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="register")
def register(root: Path) -> Registered:
    """Make this run one version of the registered model, unless it is one already."""
    get_run_logger().info("logging the run to MLflow, unless that is done ...")
    try:
        done = _register(root)
    except KshotError as error:
        return failed(error, Registered)
    return completed(str(done), done)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="report")
def report(root: Path, registered: Registered) -> Path:
    """The page of the version, attached to its MLflow run."""
    try:
        path = _report(root, registered)
    except KshotError as error:
        return failed(error, Path)
    return completed("attached to the MLflow run", path)


def publish(summary: Summary) -> None:
    """Show the result on the flow run's page."""
    create_markdown_artifact(key=RESULT, markdown=to_markdown(summary), description=str(summary.registered))
    for key, page in (("data-report", summary.data_report), ("run-report", summary.run_report)):
        create_link_artifact(key=key, link=page.as_uri())


def close_lost_run(root: Path) -> None:
    """Note which run has the workspace, and mark the one before as crashed where nothing was left to do so."""
    note = Workspace(root).flow_run_id
    before, _, place = (note.read_text(encoding="utf-8") if note.exists() else "").partition("\n")
    note.write_text(f"{runtime.flow_run.id}\n{root}", encoding="utf-8")
    if not before or place not in ("", str(root)):  # the run of a project that this one is a copy of may go on
        return
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(before)).state
        except (ObjectNotFound, ValueError):
            return  # it ran with another server, or the note is damaged
        if state is not None and not state.is_final():
            client.set_flow_run_state(UUID(before), Crashed(message="its process was killed"), force=True)


def main() -> int:
    console = terminal()
    try:
        root = Workspace.find(Path.cwd()).root
        check_configured()  # before the imports, which an error would have to wait for
        with imported_meanwhile(), prefect_api(root, console.print):
            summary = train_flow(root, return_state=True).result()
    except KshotError as error:
        console.print(unstyled(f"error: {one_line(str(error))}"), style="red", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint", style="yellow")
        return 130
    console.print(to_terminal(summary, root))
    return 0


@contextmanager
def imported_meanwhile() -> Iterator[None]:
    """Import torch and MLflow beside the start of the server, which takes another core as long.

    An error while importing is left for the task that needs the module.
    """

    def load() -> None:
        with suppress(Exception):
            for module in ("kshot.registry.registration", "kshot.registry.gate", "kshot.registry.page"):
                import_module(module)
            from kshot.tracking import load_database_stores

            load_database_stores()

    thread = threading.Thread(target=load, name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()  # an interpreter that ends within an import of torch may crash


def _check(root: Path) -> None:
    """Raise a KshotError for settings and servers with which only a late stage would fail."""
    from kshot.config import load_params  # here and not above: these import torch and mlflow
    from kshot.project.preflight import check_before_run
    from kshot.tracking import check_server

    with ThreadPoolExecutor(1) as pool:
        remote = pool.submit(check_default_remote, root)  # DVC starts for as long as the imports take
        params = load_params(Workspace(root).params)
        _unite(params.dataset, Workspace(root))
        check_before_run(params, Workspace(root))
        check_server()
        remote.result()


def _unite(settings: "DatasetSettings", workspace: Workspace) -> None:
    """Make the union that the settings name, or bring it up to date."""
    if not settings.of:
        return
    from kshot.ingest.union import unite
    from kshot.project.data_pointer import fetch_data, track_data
    from kshot.runtime.lines import LiveLines

    log = get_run_logger()
    lines = LiveLines(log.info)
    fetch_data(workspace)
    report = unite(
        settings.of,
        settings.name,
        workspace.data,
        progress=lambda done, total: lines.log_sparingly(lambda: f"{settings.name}: {done:,} of {total:,} items"),
    )
    if report is not None:
        track_data(workspace, log.warning)
        log.info(f"{settings.name}: {report.added:,} items of {', '.join(settings.of)} added")


def _register(root: Path) -> Registered:
    from kshot.config import load_params
    from kshot.registry.registration import register_run

    done = register_run(root, load_params(Workspace(root).params), str(runtime.flow_run.id))
    return Registered(name=done.name, version=done.version, created=done.created)


def _report(root: Path, registered: Registered) -> Path:
    from kshot.registry.page import write_run_report

    return write_run_report(registered.name, registered.version, root)


def _summarise(
    root: Path, stages: tuple[StageRun, ...], registered: Registered, promotion: Promotion, page: Path
) -> Summary:
    return Summary(
        scores=read_scores(root),
        stages=stages,
        registered=registered,
        promotion=promotion,
        data_report=Workspace(root).output("validate") / "report.html",
        run_report=page,
    )


if __name__ == "__main__":
    sys.exit(main())
