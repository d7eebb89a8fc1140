"""Tells a Prefect server of new data; the deployment `new-data` begins a run on it."""

import json
import os
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from kshot.errors import ConfigError, StageError
from kshot.project.dvc import run_dvc
from kshot.servers import PATIENCE_S, authorization, proxy_for, public, why_silent
from kshot.workspace import Workspace

EVENT = "kshot.dataset.announced"
_API, _AUTH, _KEY = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"


def check_can_announce() -> None:
    """Raise ConfigError where no server is named, before the work is done that is to be told of."""
    if not os.environ.get(_API, "").startswith(("http://", "https://")):
        raise ConfigError(
            f"--announce, and {_API} names no Prefect server; need one to tell; next: set it, "
            "as client.env of make stack does, or leave out --announce"
        )


def announce(workspace: Workspace, dataset: str, on_line: Callable[[str], None]) -> None:
    """Send the data of data.dvc to the default remote, then the event with data.dvc's own text.

    Raises StageError where one of them fails; the data stays as it is then, and may be announced again.
    """
    run_dvc(["push", workspace.data_pointer.name], workspace.root, on_line, doing="dvc push")
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"kshot.dataset.{dataset}", "prefect.resource.name": dataset},
        "payload": {"dataset": dataset, "data_pointer": workspace.data_pointer.read_text(encoding="utf-8")},
    }
    url = f"{os.environ[_API].rstrip('/')}/events"
    request = urllib.request.Request(  # noqa: S310  http or https, see above
        url,
        data=json.dumps([event]).encode(),
        headers={
            "Content-Type": "application/json",
            **authorization(os.environ.get(_AUTH, ""), os.environ.get(_KEY, "")),
        },
    )
    try:
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()  # noqa: S310
    except OSError as error:
        raise StageError(
            f"{public(url)} was not told of {dataset}: {why_silent(error)}{proxy_for(url)}; need a Prefect server with "
            f"the key of {_AUTH}; next: kshot announce {dataset}"
        ) from error
