"""DVC through a bad network to a real S3 server: errors, silence and broken connections lose and alter nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from infra.s3_demo import dvc_remote_at
from infra.s3_server import s3_server
from kshot.errors import KshotError, TransientStageError
from kshot.project.bucket import Bucket, ensure_bucket
from kshot.project.dvc import push, run_dvc
from tests.dvc_project import REPOSITORY
from tests.faults.faulty_proxy import CUT_ANSWER, CUT_REQUEST, STALL, UNAVAILABLE, Proxy, proxy_to, sometimes
from tests.faults.full import slow, times

_TRIES = 3  # of the flow
_FILES, _FILE_BYTES = 12, 400_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage") / "workspace"
    (root / "data").mkdir(parents=True)
    for number in range(_FILES):
        (root / "data" / str(number)).write_bytes(os.urandom(_FILE_BYTES))
    (root / ".gitignore").write_text("/.kshot/\n/data/\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    shutil.copytree(REPOSITORY / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local*"))
    subprocess.run([sys.executable, "-m", "dvc", "--quiet", "add", "data"], cwd=root, check=True)
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with s3_server(tmp_path_factory.mktemp("s3") / "objects") as bucket:
        yield bucket


@pytest.fixture
def bucket(server: Bucket, request: pytest.FixtureRequest) -> Bucket:
    found = replace(server, name=f"b{abs(hash(request.node.name))}")
    ensure_bucket(found)
    return found


@pytest.fixture
def proxy(bucket: Bucket, workspace: Path) -> Iterator[Proxy]:
    """`workspace` reaches the bucket through it."""
    port = urlsplit(bucket.endpoint_url or "").port or 0
    with proxy_to(port) as found, dvc_remote_at(replace(bucket, endpoint_url=found.url), workspace):
        yield found


def in_tries(work: Callable[[], object]) -> int:
    """How many times it was tried, as a flow tries: again after what passes, and no more than three times."""
    for number in range(1, _TRIES + 1):
        try:
            work()
        except TransientStageError:
            if number == _TRIES:
                raise
        else:
            return number
    raise AssertionError


def pull(workspace: Path) -> None:
    run_dvc(["pull"], workspace, print, doing="dvc pull")


def push_quietly(workspace: Path) -> None:
    push(workspace, print)


def contents(workspace: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workspace / "data").glob("*")}


def forget(workspace: Path) -> None:
    """As a fresh clone is."""
    shutil.rmtree(workspace / "data")
    shutil.rmtree(workspace / ".dvc" / "cache")


def faults_of(proxy: Proxy, what: str) -> int:
    return sum(done == what for _, _, done in proxy.seen)


@pytest.mark.parametrize("seed", range(times(1, 10)))
def test_a_third_of_errors_is_overcome(proxy: Proxy, workspace: Path, bucket: Bucket, seed: int) -> None:
    before = contents(workspace)
    proxy.fault = sometimes(UNAVAILABLE, 0.3, seed)
    in_tries(lambda: push_quietly(workspace))
    forget(workspace)
    in_tries(lambda: pull(workspace))
    assert contents(workspace) == before
    assert faults_of(proxy, UNAVAILABLE) >= 3


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_upload_that_breaks_leaves_nothing_half_and_the_next_one_ends_it(
    proxy: Proxy, workspace: Path, bucket: Bucket, share: float
) -> None:
    before = contents(workspace)
    proxy.cut_after = int(share * _FILE_BYTES)
    proxy.fault = lambda method, path: CUT_REQUEST if method == "PUT" and path.count("/") > 2 else ""
    with pytest.raises(KshotError):
        push_quietly(workspace)
    direct = client(bucket)
    for stored in direct.list_objects_v2(Bucket=bucket.name).get("Contents", []):
        content = direct.get_object(Bucket=bucket.name, Key=stored["Key"])["Body"].read()
        assert stored["Key"].endswith(".dir") or len(content) == _FILE_BYTES
    with suppress(direct.exceptions.NoSuchUpload):  # as rclone says that there is none
        assert not direct.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
    proxy.fault = lambda method, path: ""
    in_tries(lambda: push_quietly(workspace))
    forget(workspace)
    pull(workspace)
    assert contents(workspace) == before


def test_a_download_that_breaks_leaves_nothing_half_and_the_next_one_ends_it(proxy: Proxy, workspace: Path) -> None:
    before = contents(workspace)
    push_quietly(workspace)
    proxy.cut_after = _FILE_BYTES // 2
    proxy.fault = lambda method, path: CUT_ANSWER if method == "GET" and "list-type" not in path else ""
    forget(workspace)
    with pytest.raises(KshotError):
        pull(workspace)
    assert all(before[name] == content for name, content in contents(workspace).items())
    proxy.fault = lambda method, path: ""
    in_tries(lambda: pull(workspace))
    assert contents(workspace) == before


@slow
def test_a_server_that_never_answers_is_given_up(proxy: Proxy, workspace: Path) -> None:
    proxy.fault = lambda method, path: STALL
    with pytest.raises(TransientStageError):
        push_quietly(workspace)
    assert 0 < faults_of(proxy, STALL) < 60


def client(bucket: Bucket) -> "boto3.client":
    return boto3.client(
        "s3",
        endpoint_url=bucket.endpoint_url,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
        region_name=bucket.region,
    )
