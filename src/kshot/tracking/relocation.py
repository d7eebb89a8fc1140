"""The registry of a project folder that was copied, moved or restored from a backup.

MLflow stores where files lie as whole paths, so the database of a copy names the files of the original: a version
that is registered in the copy would be written there. Before the database is used, its paths are set to where it lies.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from kshot.workspace import Workspace

_PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def relocate(root: Path) -> list[str]:
    """Set the paths in the database of `root` to this folder; the URLs of the folders that it was in, none as a rule.

    The caller holds the lock of the store. The database is written in one transaction, or not at all.
    """
    workspace = Workspace(root.resolve())
    if not workspace.registry_database.exists():
        return []
    here = workspace.root.as_uri()
    below = workspace.registry_artifacts.as_uri().removeprefix(here)
    with closing(sqlite3.connect(workspace.registry_database, isolation_level=None)) as database:
        known = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in known:
            return []
        locations = [place for (place,) in database.execute("SELECT artifact_location FROM experiments") if place]
        before = sorted({place.removesuffix(below) for place in locations if place.endswith(below)} - {here})
        if not before:
            return []
        database.execute("BEGIN IMMEDIATE")
        for table, column in _PATHS:
            for old, new in [*((url, here) for url in before), *((_path(url), str(workspace.root)) for url in before)]:
                if table in known:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608  names of our own
                        (new, len(old) + 1, len(old) + 1, f"{old}/"),
                    )
        database.execute("COMMIT")
    return before


def _path(url: str) -> str:
    return unquote(url.removeprefix("file://"))
