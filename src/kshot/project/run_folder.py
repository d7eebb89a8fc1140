"""The folder that a deployed run works in; `prefect.yaml` names `enter_run_folder` as its pull step.

Where KSHOT_RUNS names a folder, every run has a clone of its own in it, so that runs on any worker never meet. They
share a cache of DVC, and the checkpoints, with which a run goes on from where one that died had come.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kshot.errors import ConfigError, StageError
from kshot.project.doctor import check_packages
from kshot.project.dvc import run_dvc
from kshot.project.dvc_answers import ask_dvc
from kshot.project.git import git
from kshot.project.live_process import run_live
from kshot.project.remote import Remote, check_default_remote, copy_remotes, set_default_remote
from kshot.servers import public
from kshot.workspace import Workspace

RUNS = "KSHOT_RUNS"
REPOSITORY, REVISION = "KSHOT_REPOSITORY", "KSHOT_REVISION"
REMOTE_URL, REMOTE_ENDPOINT_URL = "KSHOT_REMOTE_URL", "KSHOT_REMOTE_ENDPOINT_URL"
_REMOTE = "s3"  # of .dvc/config, which has its time-outs, and that what comes is checked
_REGISTRY = "MLFLOW_TRACKING_URI"
_FLOW_RUN = "PREFECT__FLOW_RUN_ID"
_CACHE, _CHECKPOINTS, _CLONES = "cache", "checkpoints", "clones"
_KEPT_S = 7 * 24 * 3600.0  # pages of a run open, and a failed one can be looked at


def enter_run_folder(project: str) -> dict[str, str]:
    """Make the folder of this run, and have the run's process take its source from there.

    `project` is the folder that was deployed: what is cloned where KSHOT_REPOSITORY names nothing else, and the folder
    to work in, one run after the other, where KSHOT_RUNS is not set. Raises ConfigError and StageError.
    """
    root = _clone(Path(os.environ[RUNS]).resolve(), project, print) if os.environ.get(RUNS) else _there(Path(project))
    source = str(root / "src")
    sys.path.insert(0, source)
    os.environ["PYTHONPATH"] = os.pathsep.join([source, str(root)])
    return {"directory": str(root)}


def shares_cache() -> bool:
    """Whether this run's stages may have been run by others, whose outputs are in the cache or the remote."""
    return bool(os.environ.get(RUNS))


def _there(project: Path) -> Path:
    if not Workspace(project).graph.is_file():
        raise ConfigError(
            f"this worker has no project at {project}; need it there, or {RUNS}, a folder for clones of it; "
            f"next: start the worker with {RUNS}=FOLDER, {REPOSITORY}=URL and {_REGISTRY}=URL"
        )
    return project.resolve()


def _clone(runs: Path, project: str, report: Callable[[str], None]) -> Path:
    if not os.environ.get(_REGISTRY):
        raise ConfigError(
            f"{RUNS} is set and {_REGISTRY} is not; need a registry that outlives the run's folder; next: start the "
            f"worker with {_REGISTRY}=URL, as make stack does"
        )
    _sweep(runs / _CLONES, report)
    repository, revision = os.environ.get(REPOSITORY) or project, os.environ.get(REVISION, "")
    if not repository:
        raise ConfigError(
            "the deployment names no project; need one to clone; next: prefect deploy --all in the project's folder, "
            f"with PWD set as shells do, or start the worker with {REPOSITORY}=URL"
        )
    target = runs / _CLONES / (os.environ.get(_FLOW_RUN) or f"by-hand-{time.time_ns()}")
    shutil.rmtree(target, ignore_errors=True)  # of an earlier try of the same run
    target.parent.mkdir(parents=True, exist_ok=True)
    report(f"cloning {public(repository)}, {revision or 'its head'}, to {target}")
    git(runs, "clone", "--quiet", repository, str(target))
    if revision:
        git(target, "checkout", "--quiet", "--detach", revision)
    _check_environment(target)
    _share(runs, target, project)
    check_default_remote(target)
    run_live(
        [sys.executable, "-m", "kshot", "kernels"],
        target,
        os.environ | {"PYTHONPATH": str(target / "src")},
        report,
    )
    if Workspace(target).data_pointer.is_file():
        pull_data(target, report)
    return target


def pull_data(root: Path, report: Callable[[str], None]) -> None:
    """What data.dvc points at, and the record of all runs of stages, from the default remote."""
    try:
        run_dvc(["pull", "--run-cache", Workspace(root).data_pointer.name], root, report, doing="dvc pull")
    except StageError as error:
        raise StageError(f"{error}; need the datasets of data.dvc there; next: dvc push, where they are") from error


def _check_environment(root: Path) -> None:
    found = check_packages(root / "requirements.lock")
    if not found.ok:
        raise ConfigError(
            f"this worker's environment has {found.found}; need that of the revision, {found.needed}; "
            "next: make setup at that revision, in the folder that the worker was started from, and start it again"
        )


def _share(runs: Path, target: Path, project: str) -> None:
    """The cache and the checkpoints of all runs, and the remote that the environment or the deployed project names."""
    if url := os.environ.get(REMOTE_URL):
        set_default_remote(
            target, Remote(name=_REMOTE, url=url, endpoint_url=os.environ.get(REMOTE_ENDPOINT_URL) or None)
        )
    elif (Path(project) / ".dvc").is_dir():
        copy_remotes(Path(project), target)
    ask_dvc(target, "config", "--local", "cache.dir", str(runs / _CACHE))
    ask_dvc(target, "config", "--local", "cache.type", "reflink,hardlink,copy")
    checkpoints = Workspace(target).checkpoints
    checkpoints.parent.mkdir(exist_ok=True)
    (runs / _CHECKPOINTS).mkdir(exist_ok=True)
    checkpoints.symlink_to(runs / _CHECKPOINTS, target_is_directory=True)


def _sweep(clones: Path, report: Callable[[str], None]) -> None:
    for folder in _old(clones):
        lock = FileLock(Workspace(folder).flow_lock)
        try:
            with lock.acquire(timeout=0):
                report(f"removing {folder}, of a run of more than {_KEPT_S / 24 / 3600:.0f} days ago")
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue  # still at work


def _old(clones: Path) -> Iterator[Path]:
    for folder in clones.iterdir() if clones.is_dir() else ():
        if time.time() - folder.stat().st_mtime > _KEPT_S:
            yield folder
