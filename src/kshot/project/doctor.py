"""What this machine and project folder have, what a run needs, and how to get what is missing.

Versions come from package metadata, not from imports, so that a broken package does not break the check.
"""

import os
import platform
import shutil
import socket
import sqlite3
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, metadata, requires, version
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import kshot
from kshot.errors import ConfigError, KshotError, StageError
from kshot.project.git import ask_git
from kshot.project.remote import read_remotes
from kshot.servers import PATIENCE_S, proxy_for, public, silence, why_silent
from kshot.workspace import Workspace

_FREE_BYTES = 2 * 2**30
_COMMAND_TIMEOUT_S = 5.0
_SETUP = "make setup"
_INSTALL = "pip install --require-hashes -r requirements.lock"
_OMNIGLOT_FILES = ("images_background.zip", "images_evaluation.zip")
_NAMES_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found; `fix` is the next command or step, "" where `ok`."""

    name: str
    ok: bool
    found: str
    needed: str
    fix: str = ""


def checks(root: Path) -> tuple[Finding, ...]:
    """Every check of the project folder `root` and of this environment; never raises for what it finds."""
    params = _params(root)
    return (
        _python(),
        _source(root),
        check_packages(root / "requirements.lock"),
        _torch_pair(),
        _git(root),
        params.finding,
        _data(root, params.dataset),
        _dvc_remote(root),
        _disk(root),
        _gpu(),
        _kernels(),
        _omniglot(os.environ.get("KSHOT_OMNIGLOT")),
        _database("MLflow store", os.environ.get("MLFLOW_TRACKING_URI"), Workspace(root).registry_database),
        _database("Prefect store", os.environ.get("PREFECT_API_URL"), _prefect_database(root)),
    )


@dataclass(frozen=True, kw_only=True)
class _ParamsFinding:
    """The check of params.yaml, and the name of the dataset in it where it could be read."""

    finding: Finding
    dataset: str | None


def _python() -> Finding:
    found = platform.python_version()
    try:
        needed = metadata("kshot")["Requires-Python"]
    except PackageNotFoundError:
        return _finding(
            "python", False, f"{found}, and no kshot among the installed packages", "kshot installed", _SETUP
        )
    return _finding("python", found in SpecifierSet(needed), found, needed, f"install a Python {needed}, then {_SETUP}")


def _source(root: Path) -> Finding:
    needed = "the project's own source, where it has one"
    try:
        Workspace.find(root)
    except ConfigError as error:
        return _finding("source", False, str(error).partition(";")[0], needed, f"make -C {root.resolve()} setup")
    return _finding("source", True, str(Path(kshot.__file__).parent), needed, "")


def check_packages(lock: Path) -> Finding:
    """Whether this environment has what the lock names."""
    needed = "every package at the version in requirements.lock"
    if not lock.is_file():
        return _finding("packages", False, f"no {lock}", needed, "run in the project folder")
    installed = {canonicalize_name(d.name): d.version.partition("+")[0] for d in distributions()}
    locked = _locked_versions(lock)
    wrong = [
        f"{name} {installed.get(canonicalize_name(name), 'missing')} (lock: {wanted})"
        for name, wanted in locked.items()
        if installed.get(canonicalize_name(name)) != wanted
    ]
    more = f" and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""
    found = f"{len(locked) - len(wrong)} of {len(locked)} as locked"
    details = f"; {', '.join(wrong[:_NAMES_SHOWN])}{more}" if wrong else ""
    return _finding("packages", not wrong, found + details, needed, _INSTALL)


def _locked_versions(lock: Path) -> dict[str, str]:
    """Version by package, of the lines whose markers hold here."""
    versions = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line or line[0] in " #-":
            continue
        try:
            requirement = Requirement(line.rstrip("\\ "))
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    return versions


def _torch_pair() -> Finding:
    needed = "torchvision made for the torch that is installed"
    try:
        torch, torchvision = version("torch"), version("torchvision")
        wanted = [Requirement(text) for text in requires("torchvision") or ()]
    except PackageNotFoundError as error:
        return _finding("torch and torchvision", False, f"no {error.name}", needed, _INSTALL)
    fits = all(torch in requirement.specifier for requirement in wanted if requirement.name == "torch")
    return _finding("torch and torchvision", fits, f"torch {torch}, torchvision {torchvision}", needed, _INSTALL)


def _git(root: Path) -> Finding:
    needed = "git, and the project folder in a repository"
    if shutil.which("git") is None:
        return _finding("git", False, "no git on PATH", needed, "install git")
    head = ask_git(root, "rev-parse", "--short", "HEAD")
    found = f"commit {head}" if head else f"{root.resolve()} has no commit"
    return _finding("git", bool(head), found, needed, "clone the repository, or git init and commit")


def _params(root: Path) -> _ParamsFinding:
    needed = "params.yaml that kshot can read"
    try:
        from kshot.config import load_params  # imports torch, which takes seconds and may be missing

        params = load_params(Workspace(root).params)
    except ImportError as error:
        return _ParamsFinding(finding=_finding("params", False, f"not read: {error}", needed, _INSTALL), dataset=None)
    except KshotError as error:
        finding = _finding("params", False, str(error), needed, "correct params.yaml, or kshot preset demo")
        return _ParamsFinding(finding=finding, dataset=None)
    learner = f"{params.meta_train.algorithm.name} on {params.backbone.name}, data {params.dataset.name}"
    return _ParamsFinding(finding=_finding("params", True, learner, needed, ""), dataset=params.dataset.name)


def _data(root: Path, name: str | None) -> Finding:
    known = sorted(path.parent.name for path in Workspace(root).data.glob("*/dataset.json"))
    found = f"data/: {', '.join(known) or 'nothing'}"
    if name is None:
        return _finding("data", False, found, "the dataset that params.yaml names", "correct params.yaml first")
    fix = f"dvc pull, or kshot ingest PATH --name {name}"
    return _finding("data", name in known, found, f"data/{name}, as params.yaml says", fix)


def _dvc_remote(root: Path) -> Finding:
    needed = "a default DVC remote that can be reached"
    try:
        remote = read_remotes(root).default if (root / ".dvc").is_dir() else None
    except StageError as error:
        return _finding("dvc remote", False, str(error), needed, "correct .dvc/config and .dvc/config.local")
    if remote is None:
        return _finding("dvc remote", False, "none configured", needed, "dvc remote add --default NAME URL")
    if remote.endpoint_url is not None:
        fix = "start that server (make s3-demo), or dvc remote default NAME"
        found = f"{remote.url} at {public(remote.endpoint_url)}"
        return _server("dvc remote", silence(remote.endpoint_url), remote.endpoint_url, found, needed, fix)
    if remote.folder is None:
        return _finding("dvc remote", True, f"{remote.url} (not contacted)", needed, "")
    path = remote.folder
    state = "" if path.is_dir() else " (made by the first push)"
    writable = os.access(_nearest_existing(path), os.W_OK)
    return _finding("dvc remote", writable, f"{path}{state}", needed, f"make {path} writable")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    needed = f"{_FREE_BYTES / 2**30:.0f} GiB free"
    return _finding(
        "disk", free >= _FREE_BYTES, f"{free / 2**30:.1f} GiB free", needed, "free space, or dvc gc --workspace"
    )


def _gpu() -> Finding:
    needed = "nothing: a GPU only makes it faster"
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if not names:
        return _finding("gpu", True, "none; training runs on the CPU", needed, "")
    without_cuda = _installed("torch").endswith("+cpu")
    found = ", ".join(names.splitlines()) + (", but torch is built for the CPU only" if without_cuda else "")
    return _finding("gpu", not without_cuda, found, "torch built with CUDA, where there is a GPU", _INSTALL)


def _kernels() -> Finding:
    needed = "nothing: they only make training faster"
    try:
        from kshot.backbones.layers.native import native_library  # imports torch, which may be missing

        built = native_library().exists()
    except ImportError as error:
        return _finding("native kernels", False, f"not read: {error}", needed, _INSTALL)
    return _finding("native kernels", True, "built" if built else "not built; kshot kernels compiles them", needed, "")


def _omniglot(folder: str | None) -> Finding:
    needed = "only for make omniglot: a folder with " + " and ".join(_OMNIGLOT_FILES)
    if not folder:
        return _finding("KSHOT_OMNIGLOT", True, "not set; make omniglot downloads the archives", needed, "")
    missing = [name for name in _OMNIGLOT_FILES if not (Path(folder) / name).is_file()]
    found = f"{folder} without {', '.join(missing)}" if missing else folder
    return _finding("KSHOT_OMNIGLOT", not missing, found, needed, "correct the variable, or unset it to download")


def _database(name: str, address: str | None, file: Path) -> Finding:
    """A store at the server `address` where one is set, else the SQLite `file`, which the first run makes."""
    needed = "a server that answers, or an intact SQLite file"
    if address and not address.startswith("sqlite:"):
        is_http = urlsplit(address).scheme in ("http", "https")
        why = silence(f"{address.rstrip('/')}/health", is_page=True) if is_http else _unreachable(address)
        return _server(name, why, address, public(address), needed, "start that server, or unset the variable")
    path = Path(address.removeprefix("sqlite:///")) if address else file
    if not path.exists():
        return _finding(name, True, f"{path} (made by the first run)", needed, "")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return _finding(name, False, f"{path}: {error}", needed, "move the file away, or restore it from a copy")
    return _finding(name, True, str(path), needed, "")


def _prefect_database(root: Path) -> Path:
    return Path(os.environ.get("PREFECT_HOME") or Workspace(root).prefect_home) / "prefect.db"


def _server(name: str, why: str, address: str, found: str, needed: str, fix: str) -> Finding:
    """`why` a server does not answer, "" where it does."""
    return _finding(name, not why, f"{found}: {why}{proxy_for(address)}" if why else found, needed, fix)


def _unreachable(address: str) -> str:
    """Why nothing can be reached at the host and port of the URL; "" where something listens."""
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=PATIENCE_S):
            return ""
    except (OSError, ValueError) as error:
        return why_silent(error)


def _output(*command: str) -> str:
    """What the command prints; "" when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _finding(name: str, ok: bool, found: str, needed: str, fix: str) -> Finding:
    return Finding(name=name, ok=ok, found=found, needed=needed, fix="" if ok else fix)
