"""What the containers run at their start, and what the image is built from."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from filelock import FileLock
from typer.main import get_command

from kshot.cli.app import app
from kshot.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.tools import lacking

INFRA = REPOSITORY / "infra"
IMAGES = {name: (INFRA / name).read_text(encoding="utf-8") for name in ("Containerfile", "serving/Containerfile")}
every_image = pytest.mark.parametrize("image", IMAGES)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(script: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", str(INFRA / script), *map(str, arguments)],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_secrets_are_random_and_for_their_owner_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one.env", tmp_path / "other.env"
    assert run("make_secrets.sh", one).returncode == run("make_secrets.sh", other).returncode == 0
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    values = [line.partition("=")[2] for file in (one, other) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(set(values)) == len(values) and min(map(len, values)) >= 32


def test_secrets_that_servers_may_run_with_are_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    run("make_secrets.sh", file)
    before = file.read_bytes()
    again = run("make_secrets.sh", file)
    assert again.returncode == 2 and "next: move it away" in again.stderr
    assert file.read_bytes() == before


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A project of one file and DVC's settings, at its first commit."""
    folder = tmp_path / "repository"
    shutil.copytree(REPOSITORY / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    commit(folder, "one")
    return folder


def commit(folder: Path, content: str) -> None:
    (folder / "settings.txt").write_text(content, encoding="utf-8")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", content]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def bring(repository: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bucket = {"KSHOT_S3_BUCKET": "kshot", "KSHOT_S3_ENDPOINT": "http://s3:9000"}
    source = {"KSHOT_REPOSITORY": str(repository), "KSHOT_REVISION": "HEAD"}
    return run("project.sh", folder, **{**bucket, **source, **environment})


def test_a_project_is_made_in_a_folder_that_is_not_empty_and_brought_to_the_next_commit(
    repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    (folder / "lost+found").mkdir(parents=True)
    assert bring(repository, folder).returncode == 0
    (folder / "dvc.lock").write_text("what a run left", encoding="utf-8")
    commit(repository, "two")
    done = bring(repository, folder)
    assert done.returncode == 0 and done.stdout.endswith("two\n"), done.stderr
    assert (folder / "settings.txt").read_text(encoding="utf-8") == "two"
    assert (folder / "dvc.lock").read_text(encoding="utf-8") == "what a run left"
    local = (folder / ".dvc" / "config.local").read_text(encoding="utf-8")
    assert "remote = s3" in local and "url = s3://kshot" in local and "endpointurl = http://s3:9000" in local


def test_a_project_is_left_alone_while_a_run_has_it(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    bring(repository, folder)
    commit(repository, "two")
    with FileLock(Workspace(folder).flow_lock):
        done = bring(repository, folder)
    assert done.returncode == 1 and "a run is going on" in done.stderr
    assert (folder / "settings.txt").read_text(encoding="utf-8") == "one"


def test_an_edit_in_the_project_is_not_lost(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    bring(repository, folder)
    (folder / "settings.txt").write_text("edited", encoding="utf-8")
    commit(repository, "two")
    assert bring(repository, folder).returncode != 0
    assert (folder / "settings.txt").read_text(encoding="utf-8") == "edited"


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    done = bring(tmp_path, tmp_path / "project", KSHOT_S3_ENDPOINT="")
    assert done.returncode == 2 and "found no KSHOT_S3_ENDPOINT in the environment" in done.stderr


@every_image
def test_the_image_is_of_a_python_that_pyproject_allows_and_of_a_tag_that_does_not_move(image: str) -> None:
    (found,) = re.findall(r"^ARG PYTHON_IMAGE=\S+/python:(\d+)\.(\d+)\.\d+-slim-\w+$", IMAGES[image], flags=re.M)
    major, minor = map(int, found)
    lowest, above = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    assert major == 3 and lowest <= minor < above
    assert set(re.findall(r"^FROM (\S+)", IMAGES[image], flags=re.M)) == {"${PYTHON_IMAGE}"}


@every_image
def test_the_image_has_extras_that_exist_by_hash_and_no_compiler_at_the_end(image: str) -> None:
    build, final = IMAGES[image].split("\nFROM ${PYTHON_IMAGE}\n")
    extras = set(re.findall(r"--extra (\w+)", build))
    assert extras == {"Containerfile": {"postgresql", "servers", "timm"}}.get(image, {"postgresql", "serving", "timm"})
    assert extras <= PROJECT["optional-dependencies"].keys()
    assert build.count("--require-hashes") == 2
    assert "g++" not in final
    assert re.search(r"^USER 10001:10001$", final, flags=re.M)


@every_image
def test_everything_that_is_copied_into_the_image_is_let_in_and_exists(image: str) -> None:
    sources = [
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGES[image], flags=re.M) for word in line.split()
    ]
    assert {source.partition("/")[0] for source in sources} <= let_in()
    assert [name for name in sources if not (REPOSITORY / name).exists()] == []


def test_nothing_is_let_in_that_no_image_takes() -> None:
    taken = {
        word.partition("/")[0]
        for text in IMAGES.values()
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.M)
        for word in line.split()
    }
    assert taken == let_in()
    assert taken.isdisjoint({".git", ".dvc", ".kshot", "data", "artifacts", "mlruns"})


@every_image
def test_the_image_turns_telemetry_off_as_the_makefile_does(image: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    quiet = set(re.findall(r"^export (\w*(?:TRACK|ANALYTICS|TELEMETRY)\w*) := (\w+)$", makefile, flags=re.M))
    set_there = set(re.findall(r"\w+=\S+", IMAGES[image]))
    needed = {f"{name}={value}" for name, value in quiet}
    assert quiet and needed <= set_there


@every_image
def test_a_linter_has_nothing_to_say_of_the_image(image: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        lacking("hadolint, which pip has for Linux on x86-64 alone")
    done = subprocess.run([hadolint, "--no-color", str(INFRA / image)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_of_the_serving_image_is_one_that_kshot_has() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (\[.+\])$", IMAGES["serving/Containerfile"], flags=re.M)
    options = {word for word in json.loads(entry) if word.startswith("--") and word != "--"}
    known = {option for parameter in get_command(app).commands["serve"].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert options <= known


def let_in() -> set[str]:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return {line[1:] for line in lines if line[0] == "!"}
