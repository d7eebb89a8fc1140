"""The tracking store, used by one process at a time."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import mlflow
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from kshot.errors import StageError
from kshot.servers import PATIENCE_S, proxy_for, public, why_silent
from kshot.tracking.relocation import relocate
from kshot.tracking.turn import is_lost, turn
from kshot.workspace import Workspace

_LOCK_TIMEOUT_S = 600.0
_SQLITE, _POSTGRES, _SERVERS = "sqlite:///", "postgresql", ("http://", "https://")
_FIRST_QUESTION = "/api/2.0/mlflow/registered-models/search"
T = TypeVar("T")
_LOCK_KEY = int.from_bytes(sha256(b"kshot registry").digest()[:8], signed=True)

LOST = "next: put back .kshot/mlartifacts of this project, or move .kshot/mlflow.db away to begin a new registry"


def default_tracking_uri(root: Path) -> str:
    """The SQLite file of the project folder `root`."""
    return f"{_SQLITE}{Workspace(root.resolve()).registry_database}"


def load_database_stores() -> None:
    """Import what MLflow itself imports at the first question to a database, so that it can be done ahead."""
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def prepare_store(root: Path, tracking_uri: str | None = None) -> str:
    """Create or migrate the tracking database where needed, once among processes; return its address."""
    with open_store(root, tracking_uri):
        return mlflow.get_tracking_uri()


@contextmanager
def open_store(root: Path, tracking_uri: str | None = None, *, change: str | None = None) -> Iterator[MlflowClient]:
    """A client of the tracking store, for one process at a time.

    `tracking_uri` takes precedence over MLFLOW_TRACKING_URI, and that over the SQLite file of `root`. The lock keeps
    two first starts from migrating one database at once, two registrations of one run from making two
    versions, and two promotions from moving one alias: MLflow's own write of an alias is last writer wins.
    A database is locked as a whole. On a tracking server it is the model `change` that one process at a time changes;
    None reads, or writes what may be written twice, and waits for nobody.
    MLflow's fluent calls read a global address: it is put back afterwards.
    """
    outer_uri, outer_path = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    address = tracking_uri or outer_uri or default_tracking_uri(root)
    logger = logging.getLogger("mlflow")
    outer_level = logger.level
    try:
        with _alone(address, root):
            logger.setLevel(logging.WARNING)
            if address == default_tracking_uri(root):
                for before in relocate(root):
                    print(f"copied or moved from {before}: the registry names the files here now", file=sys.stderr)
            check_server(address)
            mlflow.set_tracking_uri(address)
            try:
                if change is not None and address.startswith(_SERVERS):
                    with turn(change, _LOCK_TIMEOUT_S) as client:
                        yield client
                else:
                    yield MlflowClient()
            finally:
                mlflow.set_tracking_uri(outer_uri)  # type: ignore[arg-type]  # None puts the default back
                logger.setLevel(outer_level)
                sys.path[:] = outer_path  # checking a logged model puts its temporary code folder here
    except MlflowException as error:
        if address.startswith(_SERVERS) and is_lost(error):
            raise _no_server(address, f"{why_silent(error)}{proxy_for(address)}", "an MLflow server") from error
        raise StageError(f"MLflow refused: {first_line(error)}; next: kshot doctor") from error


def check_server(tracking_uri: str | None = None) -> None:
    """Raise StageError where a tracking server is to be used and none answers; MLflow itself would wait for minutes."""
    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not address.startswith(_SERVERS):
        return
    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(address),  # type: ignore[no-untyped-call]
            _FIRST_QUESTION,
            "GET",
            max_retries=0,
            timeout=PATIENCE_S,
            raise_on_status=False,
        )
        answer.raise_for_status()
        answer.json()
    except Exception as error:  # every library below the client has its own
        raise _no_server(address, f"{why_silent(error)}{proxy_for(address)}", "an MLflow server") from error


def _no_server(address: str, why: str, needed: str) -> StageError:
    return StageError(
        f"MLFLOW_TRACKING_URI is {public(address)}: {why}; need {needed}; "
        "next: start that server, correct its address and key, or unset MLFLOW_TRACKING_URI to use .kshot"
    )


def all_pages(search: Callable[..., PagedList[T]], *filters: str) -> Iterator[T]:
    """Everything that a search of MLflow's client finds, page by page: one answer holds no more than the first page."""
    page = search(*filters)
    yield from page
    while page.token:
        page = search(*filters, page_token=page.token)
        yield from page


@contextmanager
def _alone(address: str, root: Path) -> Iterator[None]:
    """Hold the lock of a database: an advisory lock of PostgreSQL, a file beside SQLite. A server has `turn.py`.

    For any other kind of store a file in the project folder is locked, which keeps apart its own processes only.
    """
    if address.startswith(_SERVERS):
        yield
        return
    if address.startswith(_POSTGRES):
        with _advisory_lock(address):
            yield
        return
    path = Path(address.removeprefix(_SQLITE)) if address.startswith(_SQLITE) else Workspace(root).registry_database
    lock = path.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise _held(str(lock)) from None


@contextmanager
def _advisory_lock(address: str) -> Iterator[None]:
    """PostgreSQL lets go of it when the connection ends, also by a kill."""
    engine = create_engine(
        address,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",  # no transaction that waits
        connect_args={"connect_timeout": int(PATIENCE_S)},
    )
    try:
        opened = engine.connect()
    except OperationalError as error:
        why = (str(error.orig).splitlines() or ["no answer"])[0].rpartition(" failed: ")[2]
        raise _no_server(address, why, "a PostgreSQL database") from error
    with opened as connection:
        connection.execute(text(f"SET lock_timeout = {int(_LOCK_TIMEOUT_S * 1000)}"))
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
        except OperationalError as error:
            raise _held(f"the advisory lock {_LOCK_KEY} of the database") from error
        yield


def _held(lock: str) -> StageError:
    return StageError(
        f"another process held {lock} for {_LOCK_TIMEOUT_S:.0f} s; "
        "need it free; next: wait for that process, then run this again"
    )


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
