"""data.dvc, which DVC keeps: it points at the datasets under data/, whose bytes lie in the cache and the remote."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kshot.errors import ConfigError, StageError
from kshot.project.remote import check_default_remote
from kshot.workspace import DATA, Workspace
from kshot.yaml_file import read_yaml

_FILES_OF_A_SMALL_DATASET = 3  # dataset.json, manifest and one shard: the embedded glyphs, which can be made again


def track_data(workspace: Workspace, warn: Callable[[str], None]) -> None:
    """Point data.dvc at what data/ holds now; without a DVC project only warn that nothing is versioned."""
    if not (workspace.root / ".dvc").is_dir():
        warn(f"no DVC project here: {workspace.data} is not versioned; next: dvc init")
        return
    done = _dvc(workspace, "add", workspace.data)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageError(f"dvc add {workspace.data} exited with {done.returncode}: {last}")


def take_pointer(workspace: Workspace, text: str) -> bool:
    """Make `text` the pointer. False where it says what is there already.

    Raises ConfigError for a text that points at anything but the folder of the datasets.
    """
    pointer = workspace.data_pointer
    if pointer.is_file() and pointer.read_text(encoding="utf-8") == text:
        return False
    beside = pointer.with_name(f".{pointer.name}.new")
    beside.write_text(text, encoding="utf-8")
    try:
        paths = _paths(beside)
        if paths == [DATA.name]:
            beside.replace(pointer)
            return True
    finally:
        beside.unlink(missing_ok=True)
    raise ConfigError(
        f"data_pointer points at {', '.join(paths) or 'nothing'}; need the text of a data.dvc, which points at "
        f"{DATA}; next: kshot announce NAME"
    )


def _paths(pointer: Path) -> list[str]:
    try:
        return [str(out["path"]) for out in read_yaml(pointer)["outs"]]
    except (ConfigError, KeyError, TypeError):
        return []


def fetch_data(workspace: Workspace) -> None:
    """In a fresh clone, get what data.dvc points at, because the pointer will be made anew from what is there.

    Raises StageError where the remote does not give it, unless it is as small as the embedded glyphs.
    """
    pointer = workspace.data_pointer
    if not pointer.exists() or workspace.data.exists():
        return
    unreachable = None
    try:
        check_default_remote(workspace.root)
        if _dvc(workspace, "pull", pointer).returncode == 0:
            return
    except StageError as error:
        unreachable = error
    n_files = sum(out.get("nfiles", 1) for out in read_yaml(pointer)["outs"])
    if n_files > _FILES_OF_A_SMALL_DATASET:
        raise unreachable or StageError(
            f"data.dvc points at {n_files} files that the remote does not give; need them, or this ingest "
            "would drop them from the pointer; next: dvc pull data.dvc, or rm data.dvc to begin anew"
        )


def _dvc(workspace: Workspace, command: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", "--quiet", "--wait-for-lock", command, str(path.relative_to(workspace.root))],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        check=False,
    )
