"""Running DVC: live lines, the outcome, one-line errors, and which faults are transient.

DVC is a command here, never an import: its locks tell processes apart, not threads.
"""

import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from kshot.errors import ConfigError, RejectedStageError, StageError, TransientStageError
from kshot.project.live_process import run_live
from kshot.runtime.error_file import LeftError, error_file
from kshot.runtime.lifeline import GUARDIAN_PID
from kshot.workspace import Workspace
from kshot.yaml_file import read_yaml

_TAIL_LINES = 40
_CUT_SHORT = (signal.SIGKILL, signal.SIGTERM)  # out of memory, a machine that shuts down: not the stage's own doing
_OUTS = ("outs", "metrics", "plots")

# A stage leaves its error in a file (kshot.runtime.error_file). The words below are DVC's own, which has no other way
# to say how the command of a stage ended, and what became of its lock, its remote and the network.
_ERROR = "ERROR: "
_EXITED = ", exited with "
_LACKING = "cache files do not exist neither locally nor on remote"
_TRANSIENT = re.compile(  # an expression, because every storage library behind DVC has its own spelling of a time-out
    r"timed? ?out|connection (was )?(reset|refused|closed|aborted)|could not connect|connection attempts failed"
    r"|temporary failure in name resolution|slow ?down|service ?unavailable|internal ?(server ?)?error"
    r"|too many requests|\(5\d\d\)|unable to acquire lock|it is being blocked by",
    re.IGNORECASE,
)
_KEYS = "check access_key_id and secret_access_key of the DVC remote, in .dvc/config.local or the environment"
_NEXT = {  # what to look at, by what DVC says of the remote
    "Forbidden": _KEYS,
    "AccessDenied": _KEYS,
    "Access Denied": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidAccessKeyId": _KEYS,
    "ExpiredToken": _KEYS,
    "Unable to locate cred": _KEYS,
    "NoSuchBucket": "check the url of the DVC remote, or make the bucket",
    "ould not connect": "check the endpointurl of the DVC remote, and that its server runs",
}
_ADVICE = (  # what DVC advises a person at a prompt, and the flow does itself
    "Updating lock file",
    "Generating lock file",
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Data and pipelines are up to date",
    "Having any troubles",
)


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """`cached` also when DVC restored the outputs of an earlier run."""

    stage: str
    outcome: Literal["ran", "cached"]
    seconds: float


def stage_order(root: Path) -> tuple[str, ...]:
    """Names of the stages in dvc.yaml, each after those whose outputs it reads."""
    try:
        described: dict[str, Any] = read_yaml(Workspace(root).graph)["stages"]
        stages = {name: stage for key in described for name, stage in _expanded(key, described[key], root)}
    except (OSError, ConfigError, KeyError, TypeError) as error:
        raise StageError(
            f"cannot read the stages of {Workspace(root).graph}: {error!r}; next: git checkout dvc.yaml"
        ) from error
    makers = {path: name for name, stage in stages.items() for kind in _OUTS for path in _paths(stage.get(kind))}
    graph = {
        name: [makers[out] for dep in _paths(stage.get("deps")) for out in makers if _overlap(dep, out)]
        for name, stage in stages.items()
    }
    return tuple(TopologicalSorter(graph).static_order())


def unchanged_stages(order: Sequence[str], root: Path, on_line: Callable[[str], None]) -> tuple[str, ...]:
    """The first stages of `order` that DVC, asked once for all, has nothing to do for; none where it does not answer.

    A stage behind a changed one is never among them: whether it changes is known only once that one has run.
    """
    lines: list[str] = []
    try:
        run_dvc(["status", "--json"], root, lines.append, doing="dvc status")
        changed = json.loads(next(line for line in lines if line.startswith("{")))
    except (StageError, StopIteration, ValueError):
        for line in lines:
            on_line(line)
        return ()  # the stage's own run says what is wrong
    return tuple(takewhile(lambda stage: stage not in changed, order))


def run_stage(stage: str, root: Path, on_line: Callable[[str], None], *, may_pull: bool = False) -> StageRun:
    """Bring one stage up to date, passing every line to `on_line` while it runs.

    With `may_pull` the outputs of an earlier run of the same may come from the remote.

    Raises RejectedStageError when the stage exits with 2, TransientStageError when it was killed or DVC
    could not get its lock, StageError otherwise; each with the message that the stage left.
    """
    started = time.monotonic()
    start_line = f"Running stage '{stage}':"
    ran = False

    def note(line: str) -> None:
        nonlocal ran
        ran = ran or line == start_line
        on_line(line)

    run_dvc(["repro", "--single-item", *(["--pull"] if may_pull else []), stage], root, note, doing=stage)
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

    def note(line: str) -> None:
        tail.append(line)
        if not line.lstrip().startswith(_ADVICE):
            on_line(line)

    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    with error_file() as file:
        if run_live(command, root, {**_environment(), **file.environment, **environment}, note):
            raise failure(doing, list(tail), file.read())


def push(root: Path, on_line: Callable[[str], None]) -> None:
    """Send data, artifacts and the run-cache to the default remote. What is there already is not sent again.

    DVC only warns of files that neither cache nor remote hold, and counts the push as done; here that is
    a StageError.
    """
    lacking: list[str] = []

    def note(line: str) -> None:
        if lacking or _LACKING in line:
            lacking.append(line)
        on_line(line)

    run_dvc(["push", "--run-cache"], root, note, doing="dvc push")
    hashes = [line.removeprefix("md5: ") for line in lacking if line.startswith("md5: ")]
    if lacking:
        raise StageError(
            f"dvc push: neither the cache nor the remote holds {len(hashes)} of the files that dvc.lock and data.dvc "
            f"name ({', '.join(hashes[:3])}); need them all; next: dvc commit, or dvc checkout"
        )


def failure(doing: str, lines: Sequence[str], left: LeftError | None) -> StageError:
    """The error of a failed DVC command, from its last lines and from what the stage left, where it left something."""
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    if not errors:
        last = "".join(f": {line}" for line in lines[-1:])
        return TransientStageError(f"{doing}: DVC ended without an error message{last}; next: run it again")
    _, exited, code = errors[-1].rpartition(_EXITED)
    is_of_the_stage = exited and code.lstrip("-").isdigit()
    return _failed_stage(doing, int(code), left) if is_of_the_stage else _failed_dvc(doing, errors[-1])


def _failed_stage(doing: str, code: int, left: LeftError | None) -> StageError:
    number = -code if code < 0 else code - 128  # as Python or as a shell reports a signal
    if number in _CUT_SHORT:
        name = signal.Signals(number).name
        return TransientStageError(f"{doing} was stopped by {name}, often because memory ran out; next: run it again")
    if left is not None and left.kind == TransientStageError.__name__:
        return TransientStageError(f"{doing} failed: {left.message}")
    kind = RejectedStageError if code == RejectedStageError.exit_code else StageError
    return kind(f"{doing} failed: {left.message if left else f'exit code {code}; its lines above say why'}")


def _failed_dvc(doing: str, message: str) -> StageError:
    message = message.removeprefix(f"failed to reproduce '{doing}': ").removeprefix("unexpected error - ")
    kind = TransientStageError if _TRANSIENT.search(message) else StageError
    advice = next((f"; next: {advice}" for words, advice in _NEXT.items() if words in message), "")
    return kind(f"{doing} failed: {message}{advice}")


def _expanded(name: str, stage: dict[str, Any], root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A stage; or of one with `foreach: ${key}`, a stage NAME@ITEM for each item that params.yaml lists there."""
    if "foreach" not in stage:
        yield name, stage
        return
    items: Any = read_yaml(Workspace(root).params)
    for key in stage["foreach"].removeprefix("${").removesuffix("}").split("."):
        items = items[key]
    for item in items:
        yield f"{name}@{item}", json.loads(json.dumps(stage["do"]).replace("${item}", str(item)))


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
