"""python -m infra.host_stage STAGE: one stage that trains, as this host's part of a training over several.

The first host brings the stages before it up to date and runs it through DVC, which notes it in dvc.lock. The others
wait until the first one opens the place where they meet, and train beside it. All need the same project folder.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kshot.config import Params, load_params
from kshot.errors import ConfigError, KshotError, StageError, TransientStageError
from kshot.project.dvc import run_stage, stage_order, unchanged_stages
from kshot.project.lock import hold_workspace
from kshot.runtime.workers import HOST_RANK, Hosts
from kshot.training.pretraining import NoPretraining
from kshot.workspace import Workspace

_PATIENCE_S = 3600.0  # of the others, while the first validates the data and draws the pools
_ASK_EVERY_S = 2.0
_BEFORE = ("validate", "task_pool", "pretrain", "pseudo_labels")  # what a training stands on


def run(stage: str, root: Path, report: Callable[[str], None]) -> int:
    """The exit code. Raises KshotError where this host cannot take part."""
    params = load_params(Workspace(root).params)
    hosts = Hosts.from_environment(params.process.n_hosts)
    if hosts is None:
        raise ConfigError("process.n_hosts is 1 in params.yaml; need as many as there are hosts; next: set it")
    _check_stage(stage, root)
    if hosts.rank == 0:
        with hold_workspace(root, report):
            lead(stage, params, root, report)
        return 0
    wait_for_leader(hosts.rendezvous, report)
    command = [sys.executable, "-m", "kshot", "stage", *stage.split("@")]
    return subprocess.run(command, cwd=root, check=False).returncode


def lead(stage: str, params: Params, root: Path, report: Callable[[str], None]) -> None:
    """Run the stages before this one, of which none may train: for that, the other hosts are not there yet."""
    before = _BEFORE[: _BEFORE.index(stage)] if stage in _BEFORE else _BEFORE
    for name in before:
        trains = name == "pretrain" and not isinstance(params.pretrain, NoPretraining)
        if trains and name not in unchanged_stages(before, root, report):
            raise StageError(
                f"{name} is not up to date; need it before {stage}; next: run STAGE={name} on all hosts first"
            )
        report(f"{name}: {run_stage(name, root, report).outcome}")
    report(f"{stage}: {run_stage(stage, root, report).outcome}")


def wait_for_leader(rendezvous: str, report: Callable[[str], None], *, patience_s: float = _PATIENCE_S) -> None:
    """Return once something listens there. A name that is not known yet is one to wait for, too."""
    host, _, port = rendezvous.rpartition(":")
    deadline = time.monotonic() + patience_s
    report(f"waiting for the first host at {rendezvous} ...")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=_ASK_EVERY_S).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TransientStageError(
                    f"nothing listened at {rendezvous} for {patience_s:.0f} s; need the first host of the training "
                    f"there; next: read the log of the host with {HOST_RANK}=0"
                ) from None
            time.sleep(_ASK_EVERY_S)


def _check_stage(stage: str, root: Path) -> None:
    trained = [name for name in stage_order(root) if name.partition("@")[0] in ("pretrain", "meta_train", "seeds")]
    if stage not in trained:
        raise ConfigError(f"found the stage {stage!r}; need one that trains: {', '.join(trained)}")


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    try:
        if len(arguments) != 1:
            raise ConfigError(f"found {len(arguments)} arguments; need the name of a stage; next: meta_train")
        return run(arguments[0], Workspace.find(Path.cwd()).root.resolve(), lambda line: print(line, flush=True))
    except KshotError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
