"""DVC and boto3 against a real S3 server with signed requests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.s3_demo import dvc_remote_at, file_hashes, put_back, set_aside
from infra.s3_server import s3_server
from kshot.errors import ConfigError, StageError, TransientStageError
from kshot.project.bucket import Bucket, ensure_bucket
from kshot.project.dvc import run_dvc, run_stage
from kshot.servers import free_port

REPOSITORY = Path(__file__).parents[2]
DVC_YAML = """
stages:
  make:
    cmd: mkdir -p artifacts/make && cp data/x artifacts/make/x && echo more > artifacts/make/y
    deps: [data]
    outs: [artifacts/make]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bucket, Path]]:
    """A running server's bucket, not made yet, and the folder behind it."""
    folder = tmp_path_factory.mktemp("s3") / "objects"
    with s3_server(folder) as bucket:
        yield bucket, folder


@pytest.fixture
def bucket(server: tuple[Bucket, Path], request: pytest.FixtureRequest) -> Bucket:
    """A new bucket for each test."""
    made = replace(server[0], name=f"b-{abs(hash(request.node.name))}")
    ensure_bucket(made)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with data that DVC tracks and one stage that has run."""
    root = tmp_path_factory.mktemp("project") / "workspace"
    (root / "data").mkdir(parents=True)
    (root / "data" / "x").write_text("some bytes")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / ".gitignore").write_text("/.kshot/\n/artifacts/\n/data/\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    shutil.copytree(REPOSITORY / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local*"))
    for arguments in (["add", "data"], ["repro"]):
        subprocess.run([sys.executable, "-m", "dvc", "--quiet", *arguments], cwd=root, check=True)
    return root


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "workspace")
    return tmp_path / "workspace"


def test_what_is_pushed_comes_back_byte_for_byte_and_every_stage_is_cached(workspace: Path, bucket: Bucket) -> None:
    before = file_hashes(workspace)
    with dvc_remote_at(bucket, workspace):
        _dvc(["push", "--run-cache"], workspace)
        with set_aside(workspace, workspace.parent / "aside"):
            assert not (workspace / ".dvc/cache").exists()
            assert not (workspace / "artifacts").exists()
            _dvc(["pull", "--run-cache"], workspace)
            assert file_hashes(workspace) == before
            assert run_stage("make", workspace, print).outcome == "cached"
    assert len(before) == 4


def test_an_altered_object_of_the_same_length_is_noticed(
    workspace: Path, bucket: Bucket, server: tuple[Bucket, Path]
) -> None:
    with dvc_remote_at(bucket, workspace):
        _dvc(["push"], workspace)
        (altered,) = [p for p in (server[1] / bucket.name).rglob("*") if p.is_file() and p.read_text() == "some bytes"]
        altered.write_text("same bytes")
        with (
            pytest.raises(StageError, match="dvc pull failed"),
            set_aside(workspace, workspace.parent / "aside"),
        ):
            _dvc(["pull"], workspace)
    assert (workspace / "data" / "x").read_text() == "some bytes"


def test_a_wrong_key_is_refused_in_one_line_and_not_tried_again(workspace: Path, bucket: Bucket) -> None:
    stranger = replace(bucket, secret_access_key="0" * 32)
    with (
        dvc_remote_at(stranger, workspace),
        pytest.raises(StageError, match=r"403.*next: check access_key_id") as raised,
    ):
        _dvc(["push"], workspace)
    assert not isinstance(raised.value, TransientStageError)
    assert "\n" not in str(raised.value)


def test_a_server_that_is_away_may_come_back(workspace: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    away = replace(bucket, endpoint_url=f"http://127.0.0.1:{free_port()}")
    with dvc_remote_at(away, workspace), pytest.raises(TransientStageError, match="Could not connect"):
        _dvc(["push"], workspace)


def test_the_remote_is_what_it_was_and_keys_never_reach_a_file(workspace: Path, bucket: Bucket) -> None:
    tracked, outer_key = (workspace / ".dvc/config").read_bytes(), os.environ.get("AWS_SECRET_ACCESS_KEY")
    local = workspace / ".dvc/config.local"
    with dvc_remote_at(bucket, workspace):
        assert f"s3://{bucket.name}" in local.read_text()
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == bucket.secret_access_key
        assert not [p for p in (workspace / ".dvc").glob("config*") if bucket.secret_access_key in p.read_text()]
        ignored = subprocess.run(["git", "check-ignore", "-q", str(local)], cwd=workspace, check=False)
        assert ignored.returncode == 0
    assert not local.exists()
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") == outer_key
    assert (workspace / ".dvc/config").read_bytes() == tracked
    mine = "[core]\n    site_cache_dir = /tmp/cache\n['remote \"s3\"']\n    access_key_id = mine\n"
    local.write_text(mine)
    with dvc_remote_at(bucket, workspace):
        assert "site_cache_dir" in local.read_text()
        assert "mine" not in local.read_text(), "a key of another bucket would go before the environment's"
    assert local.read_text() == mine


def test_what_a_killed_demo_set_aside_is_put_back(workspace: Path) -> None:
    before = file_hashes(workspace)
    killed = set_aside(workspace, workspace.parent / "aside")
    killed.__enter__()
    (workspace / "data").mkdir()
    put_back(workspace, workspace.parent / "aside")
    assert file_hashes(workspace) == before
    assert (workspace / ".dvc/cache").exists()


def test_a_bucket_is_made_once(server: tuple[Bucket, Path]) -> None:
    new = replace(server[0], name="made-once")
    assert ensure_bucket(new)
    assert not ensure_bucket(new)
    assert [path for path in (server[1] / "made-once").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"secret_access_key": "0" * 32}, r"answered 403 .*check access_key_id and secret_access_key"),
        ({"access_key_id": "0" * 32}, r"answered 403 .*check access_key_id and secret_access_key"),
        ({"name": "Not_A_Name"}, r"answered 400 InvalidBucketName .*check the bucket's name"),
        ({"name": "not/a/name"}, r"bucket 'not/a/name' .*Invalid bucket name"),
        ({"endpoint_url": "127.0.0.1:9000"}, r"Invalid endpoint"),
    ],
)
def test_a_wrong_setting_of_a_bucket_is_named_without_its_secret(
    server: tuple[Bucket, Path], change: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        ensure_bucket(replace(server[0], **change))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert server[0].secret_access_key not in f"{raised.value} {server[0]!r}"


def test_a_server_that_does_not_answer_is_a_failure_not_a_wrong_setting(server: tuple[Bucket, Path]) -> None:
    with pytest.raises(StageError, match="no answer from"):
        ensure_bucket(replace(server[0], endpoint_url=f"http://127.0.0.1:{free_port()}"))


def _dvc(arguments: list[str], root: Path) -> None:
    run_dvc(arguments, root, print, doing=f"dvc {arguments[0]}")
