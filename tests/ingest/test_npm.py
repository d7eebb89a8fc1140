"""Packages of npm, fetched by an `npm` that the tests write: the real one needs a network."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot.ingest.npm import Package, folder_with

VARIABLE = "KSHOT_TOY"


def package(folder: Path, name: str) -> Package:
    folder.mkdir(exist_ok=True)
    data = json.dumps({"of": name}).encode()
    info = tarfile.TarInfo("package/icons.json")
    info.size = len(data)
    file = folder / f"toy-{name}-1.0.0.tgz"
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(data))
    return Package(name=f"@toy/{name}", version="1.0.0", sha256=hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.fixture
def packages(tmp_path: Path) -> list[Package]:
    """What a registry has."""
    return [package(tmp_path / "registry", name) for name in ("a", "b")]


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that copies what the registry has, writes down what it was asked for, and fails for the rest."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "npm"
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/asked
for one in "$@"; do case $one in @toy/*)
  name=${{one#@toy/}}; cp {tmp_path}/registry/toy-${{name%@*}}-1.0.0.tgz . || exit 1
esac; done
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "asked"


def test_what_is_kept_is_not_fetched_again_and_what_is_damaged_is(
    tmp_path: Path, packages: list[Package], npm: Path
) -> None:
    kept = tmp_path / "project" / "packages"
    assert folder_with(packages, kept=kept, variable=VARIABLE) == kept
    assert [one.read_json(kept, "icons.json") for one in packages] == [{"of": "a"}, {"of": "b"}]
    folder_with(packages, kept=kept, variable=VARIABLE)
    (kept / packages[1].file).write_bytes(b"half of it")
    folder_with(packages, kept=kept, variable=VARIABLE)
    asked = [line.split("@toy/")[1:] for line in npm.read_text().splitlines()]
    assert asked == [["a@1.0.0 ", "b@1.0.0"], ["b@1.0.0"]]
    assert sorted(path.name for path in kept.iterdir()) == ["toy-a-1.0.0.tgz", "toy-b-1.0.0.tgz"]


def test_what_npm_cannot_give_or_gives_otherwise_is_refused_and_the_rest_kept(
    tmp_path: Path, packages: list[Package], npm: Path
) -> None:
    other = tmp_path / "registry" / packages[1].file
    other.write_bytes(b"another")
    with pytest.raises(DataError, match=r"found 1 of 2 packages, .* \(the others have another SHA-256\); needed all"):
        folder_with(packages, kept=tmp_path / "kept", variable=VARIABLE)
    other.unlink()
    with pytest.raises(DataError, match=r"found 1 of 2 packages, and npm gave no more \(cp: .*toy-b.*; next: mkdir"):
        folder_with(packages, kept=tmp_path / "kept", variable=VARIABLE)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [packages[0].file]


def test_without_npm_it_says_what_to_bring(
    tmp_path: Path, packages: list[Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(
        DataError,
        match=r"npm gave no more \(it cannot be run: No such file.*next: .*@toy/a@1.0.0 @toy/b@1.0.0\) .*KSHOT_TOY=",
    ):
        folder_with(packages, kept=tmp_path / "kept", variable=VARIABLE)


def test_the_command_that_a_refused_folder_names_completes_it(
    tmp_path: Path, packages: list[Package], npm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder"
    monkeypatch.setenv(VARIABLE, str(folder))
    for lacking in (2, 1):
        with pytest.raises(DataError, match=f"where {lacking} of 2 packages are missing or have another") as refused:
            folder_with(packages, kept=tmp_path / "kept", variable=VARIABLE)
        assert "\n" not in str(refused.value)
        subprocess.run(["sh", "-c", str(refused.value).partition("next: ")[2]], check=True)
        assert folder_with(packages, kept=tmp_path / "kept", variable=VARIABLE) == folder
        (folder / packages[0].file).write_bytes(b"damaged")
    assert not (tmp_path / "kept").exists()
