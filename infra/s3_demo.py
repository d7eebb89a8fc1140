"""make s3-demo: everything that DVC tracks goes to an S3 server and comes back, byte for byte.

Nothing is at risk: cache, data and artifacts are set aside meanwhile, and put back at the end.
"""

import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.prefect_server import prefect_api
from flows.summary import terminal
from flows.train import train_flow
from infra.s3_server import s3_server
from kshot.errors import KshotError, StageError
from kshot.project.bucket import Bucket, ensure_bucket
from kshot.project.dvc import push, run_dvc
from kshot.project.remote import Remote, set_default_remote
from kshot.workspace import ARTIFACTS, DATA, Workspace

_TRACKED = (DATA, ARTIFACTS)
_CACHE = Path(".dvc/cache")


def run(root: Path, console: Console) -> Table:
    """Push, wipe, pull and rerun against a new S3 server; what each step showed. StageError at the first difference."""
    state = Workspace(root).s3_demo
    aside = state / "aside"
    put_back(root, aside)  # a demo that was killed
    shutil.rmtree(state, ignore_errors=True)
    proof = Table("step", "seen", title="Storage on S3", title_justify="left")
    with s3_server(state / "server") as bucket, dvc_remote_at(bucket, root):
        ensure_bucket(bucket)
        proof.add_row("bucket", f"made, written and read at {bucket.endpoint_url} with signed requests")
        before = file_hashes(root)

        console.rule("push")
        push(root, lambda line: console.print(line, markup=False))
        sent = [path for path in (state / "server" / bucket.name).rglob("*") if path.is_file()]
        proof.add_row("push", f"{len(sent)} objects, {sum(path.stat().st_size for path in sent) / 1e6:.1f} MB")

        with set_aside(root, aside):
            proof.add_row("wipe", f"{_CACHE}, {', '.join(map(str, _TRACKED))}")
            console.rule("pull")
            run_dvc(["pull", "--run-cache"], root, lambda line: console.print(line, markup=False), doing="dvc pull")
            same = _compare(before, file_hashes(root))
            proof.add_row("pull", f"{same} files, every SHA-256 as before")

            console.rule("rerun")
            with prefect_api(root, console.print):
                summary = train_flow(root, return_state=True).result()
            if ran := [run.stage for run in summary.stages if run.outcome != "cached"]:
                raise StageError(f"{', '.join(ran)} ran again after the pull; need all cached")
            _compare(before, file_hashes(root))
            proof.add_row("rerun", f"{', '.join(run.stage for run in summary.stages)}: all cached")
            proof.add_row("register", str(summary.registered))
    shutil.rmtree(state)
    return proof


@contextmanager
def dvc_remote_at(bucket: Bucket, root: Path) -> Iterator[None]:
    """Point this workspace's default remote at the bucket, and back again.

    The keys are in the environment of this process alone. What is set in .dvc/config.local waits beside it: should
    this process be killed, the next one still finds what to put back.
    """
    local = root / ".dvc" / "config.local"
    waiting = local.with_name("config.local.before-s3-demo")
    if not waiting.exists():
        waiting.write_bytes(local.read_bytes() if local.exists() else b"")
        waiting.chmod(0o600)
    keys = {"AWS_ACCESS_KEY_ID": bucket.access_key_id, "AWS_SECRET_ACCESS_KEY": bucket.secret_access_key}
    outer = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    try:
        remote = Remote(name="s3", url=f"s3://{bucket.name}", endpoint_url=bucket.endpoint_url)
        set_default_remote(root, remote)
        yield
    finally:
        for name, value in outer.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if waiting.stat().st_size:
            waiting.replace(local)
        else:
            local.unlink(missing_ok=True)
            waiting.unlink()


@contextmanager
def set_aside(root: Path, aside: Path) -> Iterator[None]:
    """Take cache, data and artifacts away, and afterwards put them back in place of what the block made.

    Also after a success: the cache may hold what was never pushed.
    """
    aside.mkdir(parents=True)
    try:
        for folder in (_CACHE, *_TRACKED):
            if (root / folder).exists():
                (root / folder).rename(aside / folder.name)
        yield
    finally:
        put_back(root, aside)


def put_back(root: Path, aside: Path) -> None:
    for folder in (_CACHE, *_TRACKED):
        if (aside / folder.name).exists():
            shutil.rmtree(root / folder, ignore_errors=True)
            (aside / folder.name).rename(root / folder)


def file_hashes(root: Path) -> dict[str, str]:
    """SHA-256 of dvc.lock and of every tracked file, by path."""
    files = [path for folder in _TRACKED for path in sorted((root / folder).rglob("*")) if path.is_file()]
    hashes = {}
    for path in [Workspace(root).receipt, *files]:
        with path.open("rb") as content:
            hashes[str(path.relative_to(root))] = hashlib.file_digest(content, "sha256").hexdigest()
    return hashes


def main() -> int:
    console = terminal()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is put back
    started = time.monotonic()
    try:
        proof = run(Workspace.find(Path.cwd()).root, console)
    except KshotError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    console.print(proof)
    console.print(f"The default remote is the local folder again. {time.monotonic() - started:.0f} s.")
    return 0


def _compare(before: dict[str, str], after: dict[str, str]) -> int:
    """How many files there are. Raises StageError when one came back different, or did not come back."""
    different = sorted(path for path in before | after if before.get(path) != after.get(path))
    if different:
        raise StageError(f"{len(different)} of {len(before)} files differ, first {different[0]}; need the same bytes")
    return len(before)


if __name__ == "__main__":
    sys.exit(main())
