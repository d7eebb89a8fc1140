"""Running DVC: live lines, the outcome, one-line errors, and which faults are transient.

DVC is a command here, never an import: its locks tell processes apart, not threads.
"""

import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

import yaml

from kshot.errors import StageError
from kshot.project.live_process import run_live
from kshot.runtime.lifeline import GUARDIAN_PID
from kshot.workspace import Workspace

_TAIL_LINES = 40


_CUT_SHORT = (signal.SIGKILL, signal.SIGTERM)  # out of memory, a machine that shuts down: not the stage's own doing


_EXITED = re.compile(r"exited with (-?\d+)$")


_ERROR = re.compile(r"^ERROR: (?:failed to reproduce '[^']*': )?")


_NOT_ITS_OWN = re.compile(r"^(>|Running stage '|(Killed|Terminated)$)")  # from DVC, and from the shell between


_TRANSIENT = re.compile(
    r"timed? ?out|connection (was )?(reset|refused|closed|aborted)|could not connect|connection attempts failed"
    r"|temporary failure in name resolution|slow ?down|service ?unavailable|internal ?(server ?)?error"
    r"|too many requests|\(5\d\d\)|unable to acquire lock|it is being blocked by",
    re.IGNORECASE,
)


_NEXT = (  # what to look at, by what DVC says of the remote
    (
        re.compile(
            r"Forbidden|Access ?Denied|SignatureDoesNotMatch|InvalidAccessKeyId|ExpiredToken|Unable to locate cred"
        ),
        "check access_key_id and secret_access_key of the DVC remote, in .dvc/config.local or the environment",
    ),
    (re.compile(r"NoSuchBucket"), "check the url of the DVC remote, or make the bucket"),
    (re.compile(r"[Cc]ould not connect"), "check the endpointurl of the DVC remote, and that its server runs"),
)


_LACKING = re.compile("cache files do not exist neither locally nor on remote")


_ADVICE = re.compile(  # hints for a person at a prompt; the flow does this itself
    r"^(Updating lock file|Generating lock file|To track the changes with git|\s*git add |To enable auto staging"
    r"|\s*dvc config core\.autostage|Use `dvc push`|Data and pipelines are up to date|Having any troubles)"
)


class TransientStageError(StageError):
    """A fault that may pass by itself: a process killed from outside, a network or lock time-out."""


class RejectedStageError(StageError):
    """The stage refused its input or settings; running it again changes nothing."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """`cached` also when DVC restored the outputs of an earlier run."""

    stage: str
    outcome: Literal["ran", "cached"]
    seconds: float


def stage_order(root: Path) -> tuple[str, ...]:
    """Names of the stages in dvc.yaml, each after those whose outputs it reads."""
    try:
        described: dict[str, Any] = yaml.safe_load(Workspace(root).graph.read_text(encoding="utf-8"))["stages"]
        stages = {name: stage for key in described for name, stage in _expanded(key, described[key], root)}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise StageError(
            f"cannot read the stages of {Workspace(root).graph}: {error!r}; next: git checkout dvc.yaml"
        ) from error
    makers = {path: name for name, stage in stages.items() for kind in _OUTS for path in _paths(stage.get(kind))}
    graph = {
        name: [makers[out] for dep in _paths(stage.get("deps")) for out in makers if _overlap(dep, out)]
        for name, stage in stages.items()
    }
    return tuple(TopologicalSorter(graph).static_order())


def run_stage(stage: str, root: Path, on_line: Callable[[str], None]) -> StageRun:
    """Bring one stage up to date, calling `on_line` with every line while it runs.

    Raises RejectedStageError when the stage exits with 2, TransientStageError when it was killed or DVC
    could not get its lock, StageError otherwise; each with the stage's own last line.
    """
    started = time.monotonic()
    announcement = f"Running stage '{stage}':"
    ran = False

    def hear(line: str) -> None:
        nonlocal ran
        ran = ran or line == announcement
        on_line(line)

    run_dvc(["repro", "--single-item", stage], root, hear, doing=stage)
    return StageRun(stage=stage, outcome="ran" if ran else "cached", seconds=time.monotonic() - started)


def run_dvc(
    arguments: Sequence[str],
    root: Path,
    on_line: Callable[[str], None],
    *,
    doing: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run `dvc ARGUMENT...` in `root`, waiting for DVC's lock; errors as of `run_stage`, saying what was being done.

    `environment` is added to the one that there is.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def hear(line: str) -> None:
        tail.append(line)
        if not _ADVICE.match(line):
            on_line(line)

    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    if run_live(command, root, {**_environment(), **environment}, hear):
        raise failure(doing, list(tail))


def push(root: Path, on_line: Callable[[str], None]) -> None:
    """Send data, artifacts and the run-cache to the default remote. What is there already is not sent again.

    DVC only warns of files that neither cache nor remote hold, and counts the push as done; here that is
    a StageError.
    """
    lacking: list[str] = []

    def hear(line: str) -> None:
        if lacking or _LACKING.search(line):
            lacking.append(line)
        on_line(line)

    run_dvc(["push", "--run-cache"], root, hear, doing="dvc push")
    hashes = [line.removeprefix("md5: ") for line in lacking if line.startswith("md5: ")]
    if lacking:
        raise StageError(
            f"dvc push: neither the cache nor the remote holds {len(hashes)} of the files that dvc.lock and data.dvc "
            f"name ({', '.join(hashes[:3])}); need them all; next: dvc commit, or dvc checkout"
        )


def failure(doing: str, lines: Sequence[str]) -> StageError:
    """The error that the last lines of a failed DVC command amount to."""
    lines = [line.strip() for line in lines if line.strip()]
    last = max((i for i, line in enumerate(lines) if _ERROR.match(line)), default=None)
    if last is None:
        return TransientStageError(f"{doing}: DVC ended without a word{_quoted(lines[-1:])}; next: run it again")
    exited = _EXITED.search(lines[last])
    if exited is None:
        message = _ERROR.sub("", lines[last]).removeprefix("unexpected error - ")
        message += next((f"; next: {advice}" for pattern, advice in _NEXT if pattern.search(message)), "")
        return (TransientStageError if _TRANSIENT.search(message) else StageError)(f"{doing} failed: {message}")
    code = int(exited[1])
    own = [line.removeprefix("error: ") for line in lines[:last] if not _NOT_ITS_OWN.match(line)][-1:]
    if -code in _CUT_SHORT or code - 128 in _CUT_SHORT:
        name = signal.Signals(-code if code < 0 else code - 128).name
        return TransientStageError(f"{doing} was stopped by {name}, often for want of memory{_quoted(own)}")
    kind = RejectedStageError if code == RejectedStageError.exit_code else StageError
    return kind(f"{doing} failed: {own[0] if own else f'exit code {code} without a word'}")


def _expanded(name: str, stage: dict[str, Any], root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A stage; or of one with `foreach: ${key}`, a stage NAME@ITEM for each item that params.yaml lists there."""
    if "foreach" not in stage:
        yield name, stage
        return
    items: Any = yaml.safe_load(Workspace(root).params.read_text(encoding="utf-8"))
    for key in stage["foreach"].removeprefix("${").removesuffix("}").split("."):
        items = items[key]
    for item in items:
        yield f"{name}@{item}", yaml.safe_load(yaml.safe_dump(stage["do"]).replace("${item}", item))


_OUTS = ("outs", "metrics", "plots")


def _paths(entries: list[str | dict[str, Any]] | None) -> list[PurePosixPath]:
    """The paths of a list in dvc.yaml, whose items are `path` or `path: {options}`."""
    return [PurePosixPath(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries or ()]


def _overlap(a: PurePosixPath, b: PurePosixPath) -> bool:
    return a.is_relative_to(b) or b.is_relative_to(a)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "SHELL": "/bin/sh",  # DVC runs a stage with the user's own shell
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
        GUARDIAN_PID: str(os.getpid()),
    }


def _quoted(lines: Sequence[str]) -> str:
    return "".join(f": {line}" for line in lines)
