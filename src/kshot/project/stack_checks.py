"""What a project needs of the servers of a team, as the environment names them: kshot doctor --stack."""

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from kshot.errors import KshotError
from kshot.project.bucket import Bucket, ensure_bucket
from kshot.project.doctor import Finding
from kshot.project.remote import Remote, read_remotes
from kshot.servers import PATIENCE_S, authorization, proxy_for, public, why_silent

_MLFLOW, _PREFECT = "MLFLOW_TRACKING_URI", "PREFECT_API_URL"
_CLOCKS_APART_S = 30.0  # signed requests to S3 are refused from 15 min on; leases and schedules suffer sooner
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_SET = "set -a; . .kshot/stack/client.env; set +a, or as your team's servers need it"
POOL, AUTOMATION = "kshot", "kshot: a silent run has crashed"


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """`body` is None where it is not JSON; `why` says what is wrong, "" where nothing is."""

    why: str
    body: Any = None
    clock_s: float | None = None  # by how much the server's is ahead


def stack_checks(root: Path) -> tuple[Finding, ...]:
    """Every check of the servers; never raises for what it finds."""
    return (*_mlflow(os.environ.get(_MLFLOW, "")), *_prefect(os.environ.get(_PREFECT, "")), *_bucket(root))


def _mlflow(url: str) -> Iterator[Finding]:
    needed = "an MLflow server that knows this account"
    if not url.startswith(("http://", "https://")):
        yield _finding("mlflow", f"{_MLFLOW} is {public(url) or 'not set'}", needed, _SET)
        return
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    words = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}" if user else ""
    headers = authorization(words, os.environ.get("MLFLOW_TRACKING_TOKEN", ""))
    models = _ask(f"{url.rstrip('/')}/api/2.0/mlflow/registered-models/search?max_results=1", headers)
    yield _finding("mlflow", models.why, needed, _account(models.why, f"start it, or correct {_MLFLOW}"), public(url))
    if not models.why:
        yield _version("mlflow", _ask(f"{url.rstrip('/')}/version", headers))
        yield _clock("mlflow", models)


def _prefect(url: str) -> Iterator[Finding]:
    needed = "a Prefect API that knows this key"
    if not url.startswith(("http://", "https://")):
        yield _finding("prefect", f"{_PREFECT} is {public(url) or 'not set'}", needed, _SET)
        return
    headers = authorization(os.environ.get("PREFECT_API_AUTH_STRING", ""), os.environ.get("PREFECT_API_KEY", ""))

    def ask(path: str, question: object = None) -> _Answer:
        return _ask(f"{url.rstrip('/')}/{path}", headers, question)

    found = ask("admin/version")
    yield _finding("prefect", found.why, needed, _account(found.why, f"start it, or correct {_PREFECT}"), public(url))
    if not found.why:
        yield _version("prefect", found)
        yield _clock("prefect", found)
        yield from _runs(ask)


def _runs(ask: Callable[..., _Answer]) -> Iterator[Finding]:
    """Who takes runs, what there is to run, and who finds a dead one."""
    workers = ask(f"work_pools/{POOL}/workers/filter", {})
    online = [one["name"] for one in workers.body or () if one.get("status") == "ONLINE"]
    why = workers.why or ("" if online else "no worker is online")
    start = f"prefect worker start --pool {POOL} --type process"
    yield _finding("worker", why, f"a worker of the pool {POOL}", start, ", ".join(online))
    deployments = ask("deployments/filter", {})
    names = sorted(one["name"] for one in deployments.body or ())
    why = deployments.why or ("" if names else "none")
    yield _finding("deployments", why, "those of prefect.yaml", "prefect --no-prompt deploy --all", ", ".join(names))
    automations = ask("automations/filter", {})
    why = automations.why or ("" if any(one["name"] == AUTOMATION for one in automations.body or ()) else "none")
    yield _finding("dead runs", why, "an automation that finds them", "python -m flows.automations", AUTOMATION)


def _bucket(root: Path) -> Iterator[Finding]:
    needed = "a bucket as default DVC remote, which keeps what it is given"
    try:
        remote = read_remotes(root).default
    except KshotError as error:
        yield _finding("bucket", str(error), needed, "correct .dvc/config and .dvc/config.local")
        return
    if remote is None or not remote.url.startswith("s3://"):
        found = f"the default remote is {remote.url if remote else 'not set'}"
        yield _finding("bucket", found, needed, "python -m infra.stack join, or dvc remote default s3")
        return
    if missing := [name for name in _KEYS if not os.environ.get(name)]:
        yield _finding("bucket", f"{' and '.join(missing)} not set", needed, _SET, remote.url)
        return
    yield _written(remote, needed)
    if remote.endpoint_url:
        yield _clock("bucket", _ask(remote.endpoint_url, {}))


def _written(remote: Remote, needed: str) -> Finding:
    bucket = Bucket(
        name=remote.url.removeprefix("s3://").partition("/")[0],
        access_key_id=os.environ[_KEYS[0]],
        secret_access_key=os.environ[_KEYS[1]],
        endpoint_url=remote.endpoint_url,
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    )
    try:
        ensure_bucket(bucket)
    except KshotError as error:
        found, _, fix = str(error).partition("; next: ")
        return _finding("bucket", found, needed, fix or "kshot doctor")
    return _finding("bucket", "", needed, "", f"{remote.url}, written, read and removed")


def _ask(url: str, headers: Mapping[str, str], question: object = None) -> _Answer:
    data = None if question is None else json.dumps(question).encode()
    typed = {**headers, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=typed)  # noqa: S310  http or https, see above
    asked = time.time()
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
            content, date = answer.read(), answer.headers.get("Date")
    except HTTPError as error:
        return _Answer(why=f"{public(url)} answers {error.code} {error.reason}", clock_s=_ahead(error.headers, asked))
    except (OSError, ValueError) as error:
        return _Answer(why=f"{public(url)}: {why_silent(error)}{proxy_for(url)}")
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace").strip()
    return _Answer(why="", body=body, clock_s=_ahead({"Date": date}, asked))


def _ahead(headers: Any, asked: float) -> float | None:
    date = headers.get("Date")
    return parsedate_to_datetime(date).timestamp() - (asked + time.time()) / 2 if date else None


def _version(package: str, answer: _Answer) -> Finding:
    """A client that is newer than its server is refused in places, and the other way round."""
    here, there = version(package), str(answer.body)
    same = there.split(".")[:2] == here.split(".")[:2]
    why = answer.why or ("" if same else f"{there}, and {here} here")
    return _finding(f"{package} version", why, "the minor version that is here", f"run {package} {here} there", there)


def _clock(name: str, answer: _Answer) -> Finding:
    needed = f"a clock within {_CLOCKS_APART_S:.0f} s of this one"
    if answer.clock_s is None:
        return _finding(f"{name} clock", "", needed, "", "not said")
    found = f"{answer.clock_s:+.0f} s"
    why = found if abs(answer.clock_s) > _CLOCKS_APART_S else ""
    return _finding(f"{name} clock", why, needed, "set both clocks by NTP", found)


def _account(why: str, otherwise: str) -> str:
    return f"correct the account and its password: {_SET}" if " 401 " in why or " 403 " in why else otherwise


def _finding(name: str, why: str, needed: str, fix: str, found: str = "") -> Finding:
    return Finding(name=name, ok=not why, found=why or found, needed=needed, fix=fix if why else "")
