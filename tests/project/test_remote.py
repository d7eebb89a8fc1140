"""Remotes, as the real DVC reads and writes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from kshot.errors import StageError
from kshot.project.remote import Remote, check_default_remote, copy_remotes, read_remotes, set_default_remote

FOLDER = "['remote \"here\"']\n    url = ../store\n"
SERVER = "['remote \"there\"']\n    url = s3://shared\n    endpointurl = http://127.0.0.1:1\n"


def write(root: Path, config: str, local: str | None = None, *, default: str | None = None) -> Path:
    (root / ".dvc").mkdir(parents=True)
    core = "[core]\n    no_scm = true\n    analytics = false\n" + (f"    remote = {default}\n" if default else "")
    (root / ".dvc" / "config").write_text(core + config)
    if local is not None:
        (root / ".dvc" / "config.local").write_text(local)
    return root


def test_a_folder_has_its_whole_path_and_a_server_its_address(tmp_path: Path) -> None:
    root = write(tmp_path / "project", SERVER, FOLDER, default="here")
    found = read_remotes(root)
    here = Remote(name="here", url=str(tmp_path / "project" / "store"))
    there = Remote(name="there", url="s3://shared", endpoint_url="http://127.0.0.1:1")
    assert found.default == here
    assert (here.folder, there.folder) == (tmp_path / "project" / "store", None)
    assert sorted(found.all, key=lambda remote: remote.name) == [here, there]


def test_without_a_default_there_is_none(tmp_path: Path) -> None:
    assert read_remotes(write(tmp_path / "none", SERVER)).default is None
    assert read_remotes(write(tmp_path / "gone", SERVER, default="gone")).default is None


def test_a_new_default_is_set_on_this_machine_only(tmp_path: Path) -> None:
    root = write(tmp_path / "project", FOLDER, default="here")
    tracked = (root / ".dvc" / "config").read_bytes()
    there = Remote(name="there", url="s3://other", endpoint_url="http://127.0.0.1:2")
    set_default_remote(root, there)
    assert read_remotes(root).default == there
    assert (root / ".dvc" / "config").read_bytes() == tracked


def test_a_clone_uses_the_folder_of_the_original_and_keeps_keys_to_itself(tmp_path: Path) -> None:
    keys = "    access_key_id = mine\n    secret_access_key = secret\n"
    root = write(tmp_path / "project", FOLDER, SERVER + keys, default="here")
    clone = write(tmp_path / "below" / "clone", "")
    copy_remotes(root, clone)
    assert read_remotes(clone) == read_remotes(root)
    local = clone / ".dvc" / "config.local"
    assert local.stat().st_mode & 0o077 == 0
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "remote.there.secret_access_key"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.strip() == "secret"


def test_a_default_remote_whose_server_does_not_answer_is_one_line(tmp_path: Path) -> None:
    check_default_remote(write(tmp_path / "folder", SERVER + FOLDER, default="here"))
    check_default_remote(tmp_path)  # no DVC project
    with pytest.raises(
        StageError,
        match=r"^endpointurl of the DVC remote there is http://127.0.0.1:1: nothing listens there; need its server; "
        r"next: start that server, or dvc remote default --local NAME, of here$",
    ):
        check_default_remote(write(tmp_path / "server", SERVER + FOLDER, default="there"))
