"""Runs of deployments on the real servers and worker of the stack: repeated, killed, cancelled, and no secret left."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from infra.stack.settings import Stack, read_stack
from kshot.project.git import git
from tests.dvc_project import REPOSITORY
from tests.faults.full import slow
from tests.tiny_project import tiny_params, write_project

pytestmark = [slow, pytest.mark.timeout(900)]

_NIGHTLY = "train/nightly"
_ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Team:
    """A project that uses a stack."""

    stack: Stack
    root: Path

    def run(self, *command: str) -> str:
        environment = os.environ | self.stack.client_environment()
        environment |= {"PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{self.root}", "PWD": str(self.root)}
        environment |= {"PREFECT_HOME": str(self.root / ".kshot" / "prefect")}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prefect(self, path: str, question: object = None) -> Any:
        user, _, password = self.stack.client_environment()["PREFECT_API_AUTH_STRING"].partition(":")
        url, auth = f"{self.stack.prefect_url}/api/{path}", (user, password)
        answer = (
            requests.post(url, json=question, auth=auth, timeout=30)
            if question
            else requests.get(url, auth=auth, timeout=30)
        )
        assert answer.ok, answer.text
        return answer.json()

    def begin(self, **training: Any) -> str:
        """The id of a run of the nightly deployment, with a training that no run had before."""
        params = yaml.safe_load((self.root / "params.yaml").read_text())
        params["seed"] += 1
        params["meta_train"]["training"] |= training
        (self.root / "params.yaml").write_text(yaml.safe_dump(params))
        commit(self.root)
        return self.again()

    def again(self) -> str:
        self.run("-m", "prefect", "deployment", "run", _NIGHTLY)
        return str(self.newest()["id"])

    def newest(self) -> Any:
        """Of the runs whose time has come."""
        begun = {"expected_start_time": {"before_": datetime.now(UTC).isoformat()}}
        return self.prefect("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1, "flow_runs": begun})[0]

    def state(self, run: str) -> str:
        return str(self.prefect(f"flow_runs/{run}")["state"]["type"])

    def ended(self, run: str) -> str:
        self.until(lambda: self.state(run) in _ENDS, 300)
        return self.state(run)

    def lines(self, run: str) -> str:
        logs = self.prefect("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "offset": 0})
        return "\n".join(line["message"] for line in logs)

    def clone(self, run: str) -> Path:
        return self.stack.folder / "runs" / "clones" / run

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, self.stack.logs
            time.sleep(0.5)

    def has_checkpoint(self) -> bool:
        return any((self.stack.folder / "runs" / "checkpoints").glob("*/*"))

    def versions(self) -> int:
        values = self.stack.client_environment()
        answer = requests.get(
            f"{self.stack.mlflow_url}/api/2.0/mlflow/model-versions/search?filter=name='tiny'",
            auth=(values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]),
            timeout=30,
        )
        return len(answer.json().get("model_versions", []))


def commit(root: Path) -> None:
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--all", "--quiet", "-m", "settings")


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with tempfile.TemporaryDirectory(prefix="kshot-team-") as folder:
        os.chmod(folder, 0o755)  # PostgreSQL's user has to get through
        place, root = Path(folder, "stack"), Path(folder, "project")
        git(Path(folder), "clone", "--quiet", str(REPOSITORY), str(root))
        write_project(root, tiny_params())
        stack_command(place, "start")
        try:
            found = Team(stack=read_stack(place), root=root)
            found.run("-m", "infra.stack", "join", "--folder", str(place))
            found.run("-m", "dvc", "add", "data")
            found.run("-m", "dvc", "push", "data.dvc")
            commit(root)
            found.run("-m", "prefect", "--no-prompt", "deploy", "--all")
            found.run("-m", "flows.automations")
            yield found
        finally:
            stack_command(place, "stop")


def stack_command(place: Path, what: str) -> None:
    subprocess.run([sys.executable, "-m", "infra.stack", what, "--folder", place], check=True, cwd=REPOSITORY)


def at_work(folder: Path) -> list[int]:
    """The processes that work in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            here = Path(os.readlink(entry / "cwd"))
        except OSError:
            continue
        if here.is_relative_to(folder):
            found.append(int(entry.name))
    return found


def test_a_run_trains_once_and_every_later_one_finds_what_it_made(team: Team) -> None:
    first = team.begin()
    assert team.ended(first) == "COMPLETED", team.lines(first)
    again = team.again()
    assert team.ended(again) == "COMPLETED", team.lines(again)
    assert "already registered" in team.prefect(f"flow_runs/{again}")["state"]["message"]
    assert team.versions() == 1
    assert team.clone(first) != team.clone(again)


def test_announced_data_begin_a_run_on_them(team: Team) -> None:
    before = team.newest()["id"]
    shutil.copytree(team.root / "data" / "tiny", team.root / "data" / "other")
    team.run("-m", "dvc", "add", "data")
    team.run("-m", "kshot", "announce", "other")
    team.until(lambda: team.newest()["id"] != before, 60)
    run = team.newest()["id"]
    assert team.ended(run) == "COMPLETED", team.lines(run)
    assert (team.clone(run) / "data" / "other" / "dataset.json").is_file()
    git(team.root, "checkout", "--quiet", "--", "data.dvc")  # it was never committed


def test_a_killed_run_is_found_and_the_next_one_resumes_it(team: Team) -> None:
    run = team.begin(n_steps=100_000, validate_every=100_000, checkpoint_every_s=0.5)
    team.until(team.has_checkpoint, 120)
    for pid in at_work(team.clone(run)):
        os.kill(pid, signal.SIGKILL)
    team.until(lambda: team.state(run) == "CRASHED", 300)
    team.until(lambda: not at_work(team.clone(run)), 60)
    again = team.again()
    team.until(lambda: "resuming from the checkpoint of step" in team.lines(again), 120)
    cancel(team, again)


def test_a_cancelled_run_leaves_no_process(team: Team) -> None:
    run = team.begin(n_steps=100_000, validate_every=100_000, checkpoint_every_s=0.5)
    team.until(lambda: "step" in team.lines(run), 120)
    assert at_work(team.clone(run))
    cancel(team, run)


def cancel(team: Team, run: str) -> None:
    team.run("-m", "prefect", "flow-run", "cancel", run)
    team.until(lambda: not at_work(team.clone(run)), 60)
    assert team.ended(run) == "CANCELLED"


def test_no_secret_is_left_anywhere(team: Team) -> None:
    secrets = {
        str(value).encode()
        for name, value in vars(team.stack.kept).items()
        if name.endswith(("_password", "_secret", "_session_key"))
    }
    own = {team.stack.folder / name for name in ("kept.env", "client.env", "mlflow-auth.ini")}
    places = (team.stack.folder, team.root)
    files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 1000
    assert [path for path in files if path not in own and any(one in path.read_bytes() for one in secrets)] == []
