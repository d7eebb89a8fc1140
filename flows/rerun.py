"""Rebuild a registered version in a clean clone and say whether it is the same.

python -m flows.rerun --version 3 pulls everything that the version's dvc.lock names into an empty cache and checks
each hash; with --from-scratch every stage runs again, and weights and episode results are compared.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from flows.prefect_server import prefect_api
from flows.stage_task import completed, failed
from flows.summary import terminal
from kshot.errors import KshotError, StageError
from kshot.printing import one_line, unstyled
from kshot.project.dvc import run_dvc, stage_order
from kshot.project.live_process import run_live
from kshot.project.remote import check_default_remote
from kshot.workspace import Workspace

DIFFERENT = 1


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """The result in words, and the page with the details."""

    words: str
    passed: bool
    page: Path

    def __str__(self) -> str:
        return self.words


@flow(name="rerun", persist_result=False)
def rerun_flow(version: int, model: str = "", root: Path = Path(), from_scratch: bool = False) -> Rerun:
    """Rebuild `version` of `model` (params.yaml's, where empty) from what was recorded of it."""
    try:
        done = rerun(root.resolve(), model, version, from_scratch, return_state=True).result()
        create_link_artifact(key="rerun-report", link=done.page.as_uri(), description=str(done))
        return completed(str(done), done)
    except KshotError as error:
        return failed(error, Rerun)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="rerun")
def rerun(root: Path, model: str, version: int, from_scratch: bool) -> Rerun:
    """Clone, pull, check every hash; and where asked, run every stage again and compare."""
    try:
        done = _rerun(root, model, version, from_scratch, get_run_logger().info)
    except KshotError as error:
        return failed(error, Rerun)
    return completed(str(done), done)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.rerun", description=rerun_flow.__doc__)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--model", default="", help="register.model_name of params.yaml where not given")
    parser.add_argument("--from-scratch", action="store_true", help="run every stage again and compare")
    given = parser.parse_args()
    console = terminal()
    try:
        root = Workspace.find(Path.cwd()).root
        with prefect_api(root, console.print):
            done = rerun_flow(given.version, given.model, root, given.from_scratch, return_state=True).result()
    except KshotError as error:
        console.print(unstyled(f"error: {one_line(str(error))}"), style="red", soft_wrap=True)
        return error.exit_code
    for line in (str(done), f"report  {done.page}"):
        console.print(unstyled(line), soft_wrap=True)
    return 0 if done.passed else DIFFERENT


def _rerun(root: Path, model: str, version: int, from_scratch: bool, report: Callable[[str], None]) -> Rerun:
    from kshot.config import load_params
    from kshot.pages.page import render
    from kshot.registry import rebuild, receipt  # here and not above: these import torch and mlflow
    from kshot.runtime.process import CPU, CPU_WITH_KERNELS, WITHOUT_KERNELS

    name = model or load_params(Workspace(root).params).register.model_name
    folder = Workspace(root).rerun(name, version)
    clone, files = folder / "clone", folder / "recorded"
    recorded = rebuild.recorded_version(name, version, root, files)
    check_default_remote(root)
    report(f"cloning commit {recorded.commit[:12]} ...")
    rebuild.clean_clone(root, recorded, files, clone)
    pull(clone, report)
    n_files = receipt.check_recorded_bytes(clone)
    rebuild.check_weights_of(recorded, clone)
    words = f"{n_files} files and folders pulled into an empty cache, every hash as recorded"
    report(words)
    verdict = None
    if from_scratch:
        if recorded.device.startswith(CPU_WITH_KERNELS):
            build_kernels(clone, report)
        run_again(clone, report, {WITHOUT_KERNELS: "1"} if recorded.device == CPU else {})
        trained = json.loads((Workspace(clone).output("meta_train") / "metrics.json").read_text(encoding="utf-8"))
        verdict = rebuild.compare_rebuilt(recorded, clone, str(trained["device"]))
        words = str(verdict)
    page = folder / "report.html"
    command = f"make rerun MODEL={name} VERSION={version}{' FROM_SCRATCH=1' if from_scratch else ''}"
    content = render("rerun.html.j2", name=name, recorded=recorded, n_files=n_files, verdict=verdict, command=command)
    page.write_text(content, encoding="utf-8")
    return Rerun(words=words, passed=verdict is None or verdict.passed, page=page)


def pull(clone: Path, report: Callable[[str], None]) -> None:
    """Everything that data.dvc and dvc.lock name, from the remote. StageError, naming the first, where one is lost."""
    try:
        run_dvc(["pull"], clone, report, doing="dvc pull")
    except StageError as error:
        raise StageError(
            f"{error}; need every file of the version in the remote; next: dvc push, where they are"
        ) from error


def build_kernels(clone: Path, report: Callable[[str], None]) -> None:
    """The native kernels of the clone's source, which this environment may lack; a failure is only reported."""
    run_live([sys.executable, "-m", "kshot", "kernels"], clone, os.environ | _own_source(clone), report)


def run_again(clone: Path, report: Callable[[str], None], environment: Mapping[str, str]) -> None:
    """Every stage, by the clone's own source, whatever is there already."""
    for stage in stage_order(clone):
        run_dvc(
            ["repro", "--single-item", "--force", "--no-run-cache", stage],
            clone,
            report,
            doing=stage,
            environment={**_own_source(clone), **environment},
        )


def _own_source(clone: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(clone / "src"), str(clone)])}


if __name__ == "__main__":
    sys.exit(main())
