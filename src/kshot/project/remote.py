"""The DVC remotes of a project folder, read and written by DVC's own commands: every level of its settings counts.

What is written goes into .dvc/config.local, which git ignores. Keys are never written, nor put on a command line.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from kshot.errors import StageError
from kshot.project.dvc_answers import ask_dvc
from kshot.servers import proxy_for, public, silence


@dataclass(frozen=True, kw_only=True)
class Remote:
    """`url` of a remote that is a folder is its whole path; `endpoint_url` is None without a server of its own."""

    name: str
    url: str
    endpoint_url: str | None = None

    @property
    def folder(self) -> Path | None:
        return None if "://" in self.url else Path(self.url)


@dataclass(frozen=True, kw_only=True)
class Remotes:
    """`default` is None where none is set, or one without settings."""

    all: tuple[Remote, ...]
    default: Remote | None


def read_remotes(root: Path) -> Remotes:
    """The remotes as DVC sees them in `root`. Raises StageError where DVC cannot read its settings."""
    settings = dict(line.split("=", 1) for line in ask_dvc(root, "config", "--list").splitlines() if "=" in line)
    names = [key.removeprefix("remote.").removesuffix(".url") for key in settings if _is_url(key)]
    remotes = {
        name: Remote(
            name=name,
            url=settings[f"remote.{name}.url"],
            endpoint_url=settings.get(f"remote.{name}.endpointurl"),
        )
        for name in names
    }
    return Remotes(all=tuple(remotes.values()), default=remotes.get(settings.get("core.remote", "")))


def check_default_remote(root: Path) -> None:
    """Raise StageError where the default remote is on a server of its own that does not answer.

    DVC finds out at the first file, after minutes of its own. A folder, and what has no such address, is not contacted.
    """
    if not (root / ".dvc").is_dir():
        return
    remotes = read_remotes(root)
    remote = remotes.default
    if remote is None or remote.endpoint_url is None:
        return
    if why := silence(remote.endpoint_url):
        raise StageError(
            f"endpointurl of the DVC remote {remote.name} is {public(remote.endpoint_url)}: "
            f"{why}{proxy_for(remote.endpoint_url)}; need its server; next: start that server, "
            f"or dvc remote default --local NAME, of {', '.join(one.name for one in remotes.all if one != remote)}"
        )


def set_default_remote(root: Path, remote: Remote) -> None:
    """Make `remote` the default of `root`, on this machine only; its other settings are those of .dvc/config."""
    ask_dvc(root, "remote", "add", "--local", "--force", "--default", remote.name, remote.url)
    if remote.endpoint_url is not None:
        ask_dvc(root, "remote", "modify", "--local", remote.name, "endpointurl", remote.endpoint_url)


def copy_remotes(root: Path, target: Path) -> None:
    """Give the clone `target` the settings of `root`; a remote that is a folder is named by its whole path there."""
    for name in ("config", "config.local"):
        source, copy = root / ".dvc" / name, target / ".dvc" / name
        if source.exists():
            copy.touch(mode=0o600)  # it may hold keys
            shutil.copyfile(source, copy)
    for remote in read_remotes(root).all:
        if remote.folder is not None:
            ask_dvc(target, "remote", "modify", "--local", remote.name, "url", str(remote.folder))


def _is_url(key: str) -> bool:
    return key.startswith("remote.") and key.endswith(".url")
