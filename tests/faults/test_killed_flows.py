"""The whole flow, killed at the border of every stage and at drawn moments, and run again until it ends."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from kshot.project.git import git
from kshot.tracking.champion import history
from kshot.tracking.store import open_store
from tests.dvc_project import REPOSITORY
from tests.faults.full import slow, times
from tests.tiny_project import tiny_params, write_project

pytestmark = [slow, pytest.mark.timeout(1800)]

_STEPS = (
    "validate",
    "task_pool",
    "pretrain",
    "pseudo_labels",
    "meta_train",
    "evaluate",
    "push",
    "register",
    "promote",
    "report",
)
_ENDED = re.compile(r"Task run '(\w+)' - Finished in state Completed")
_WAIT_S = 60


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with data, of which nothing has run."""
    root = tmp_path_factory.mktemp("flow") / "project"
    git(root.parent, "clone", "--quiet", str(REPOSITORY), str(root))
    write_project(root, tiny_params())
    subprocess.run([sys.executable, "-m", "dvc", "--quiet", "add", "data"], cwd=root, check=True)
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--all", "--quiet", "-m", "settings")
    return root


@pytest.fixture(scope="module")
def unbroken(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What a run makes that nobody disturbs, and how many seconds it takes."""
    root = copied(template, tmp_path_factory.mktemp("unbroken"))
    began = time.monotonic()
    assert begin(root).wait() == 0
    return made(root), time.monotonic() - began


def copied(template: Path, folder: Path) -> Path:
    """At the same path from the root of the project on, so that nothing in it depends on where it is."""
    return Path(shutil.copytree(template, folder / "project", symlinks=True))


def begin(root: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
        environment.pop(name, None)
    with (root.parent / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.train"],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def kill(process: "subprocess.Popen[str]", root: Path) -> None:
    """The flow alone; what it started has to end by itself."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + _WAIT_S
    while at_work(root):
        assert time.monotonic() < deadline, at_work(root)
        time.sleep(0.1)


def at_work(root: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")).is_relative_to(root):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def ended_steps(root: Path) -> set[str]:
    log = root.parent / "log"
    return set(_ENDED.findall(log.read_text())) if log.exists() else set()


def made(root: Path) -> dict[str, str]:
    """The hash of every output, and how often something was registered and promoted."""
    with open_store(root) as client:
        versions = [version.version for version in client.search_model_versions("name='tiny'")]
    moves = [entry.outcome for entry in history("tiny", root) if entry.outcome == "moved"]
    files = sorted(path for path in (root / "artifacts").rglob("*") if path.is_file())
    hashes = {
        str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix not in (".html", ".png")  # pages have the time in them
    }
    return hashes | {"versions": str(versions), "moves": str(moves)}


def test_killed_at_every_border_it_ends_as_if_nothing_had_been(
    template: Path, unbroken: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    root = copied(template, tmp_path)
    for step in _STEPS:
        process = begin(root)
        (root.parent / "log").write_text("")
        while step not in ended_steps(root) and process.poll() is None:
            time.sleep(0.02)
        kill(process, root)
    assert begin(root).wait() == 0
    assert made(root) == unbroken[0]


@pytest.mark.parametrize("seed", range(times(1, 50)))
def test_killed_at_a_drawn_moment_it_ends_as_if_nothing_had_been(
    template: Path, unbroken: tuple[dict[str, str], float], tmp_path: Path, seed: int
) -> None:
    root = copied(template, tmp_path)
    process = begin(root)
    time.sleep(random.Random(seed).uniform(0, unbroken[1]))
    kill(process, root)
    assert begin(root).wait() == 0
    assert made(root) == unbroken[0]
    shutil.rmtree(tmp_path)
