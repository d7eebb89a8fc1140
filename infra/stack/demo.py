"""make stack-demo: the demo as a team runs it, by a deployment on the worker of the stack."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from infra.stack.programs import inherited
from infra.stack.settings import Stack
from infra.stack.supervision import start, statuses
from kshot.errors import StageError
from kshot.printing import unstyled
from kshot.project.live_process import run_live
from kshot.workspace import Workspace

_DEPLOYMENT = "train/nightly"


def run_demo(stack: Stack, root: Path, console: Console) -> None:
    """Raises StageError with the next command where a step fails."""
    if down := [one.name for one in statuses(stack) if not one.works]:
        raise StageError(f"of the stack, {', '.join(down)} do not answer; need all; next: make stack")
    environment = {
        **inherited(),
        **stack.client_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PREFECT_HOME": str(Workspace(root).prefect_home),
        "PWD": str(root),  # which prefect.yaml names
    }
    ingest: list[str | Path] = [sys.executable, "-m", "kshot", "ingest", "glyphs"]
    steps: list[tuple[str, list[str | Path]]] = [
        (
            "the project's data go to the bucket",
            [sys.executable, "-m", "infra.stack", "join", "--folder", stack.folder],
        ),
        *([] if Workspace(root).dataset("glyphs").is_dir() else [("", ingest)]),
        ("", [sys.executable, "-m", "dvc", "push", "data.dvc"]),
        ("the deployments", [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]),
        ("what the server does around them", [sys.executable, "-m", "flows.automations"]),
        (
            "a run of the worker, which takes some minutes",
            [sys.executable, "-m", "prefect", "deployment", "run", _DEPLOYMENT, "--watch"],
        ),
    ]
    printed: list[str] = []
    for title, command in steps:
        if title:
            console.rule(title)
        printed = _run([str(word) for word in command], root, environment, console)
    run_id = next((found[1] for line in printed if (found := re.search(r"([0-9a-f]{8}-[0-9a-f-]{27})", line))), "")
    console.rule("what it gave")
    _show(run_id, root, environment)
    start(stack, lambda line: console.print(unstyled(line), soft_wrap=True))  # the service, which has a champion now
    for name, url in (("MLflow", stack.mlflow_url), ("Prefect", stack.prefect_url), ("Service", stack.serving_url)):
        console.print(unstyled(f"{name:8} {url}, with the keys of {stack.client_environment_file}"), soft_wrap=True)


def _run(command: list[str], root: Path, environment: Mapping[str, str], console: Console) -> list[str]:
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        console.print(unstyled(line), soft_wrap=True)

    if code := run_live(command, root, environment, note):
        raise StageError(f"{' '.join(command[2:5])} ended with {code}; its lines above say why; next: make stack-demo")
    return lines


def _show(run_id: str, root: Path, environment: Mapping[str, str]) -> None:
    """The table, from what the run left on its page in Prefect; in a process that has the keys."""
    done = subprocess.run(
        [sys.executable, "-m", "infra.stack.show", run_id], cwd=root, env=dict(environment), check=False
    )
    if done.returncode:
        raise StageError(f"Prefect has no result of run {run_id}; next: look at its page")
