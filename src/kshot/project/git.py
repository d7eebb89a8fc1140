"""The one way in which kshot runs git."""

import subprocess
from pathlib import Path

from kshot.errors import StageError

_TIMEOUT_S = 600


def git(folder: Path, *arguments: str) -> str:
    """What `git ARGUMENT...` prints in `folder`. Raises StageError, with git's last line, where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607  whichever git the user has
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageError(f"git {arguments[0]} failed: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(f"git {arguments[0]} failed: {error}; next: install git") from error
    return done.stdout.strip()


def ask_git(folder: Path, *arguments: str) -> str | None:
    """The same, or None where there is no git or no repository."""
    try:
        return git(folder, *arguments)
    except StageError:
        return None
