"""Packages of npm, each by its version and SHA-256: in a folder that the user names, or fetched once and kept.

Nothing of a package is run.
"""

import hashlib
import io
import json
import os
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.errors import DataError
from kshot.printing import listed, one_line


@dataclass(frozen=True, kw_only=True)
class Package:
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        """As npm is asked for it."""
        return f"{self.name}@{self.version}"

    @property
    def file(self) -> str:
        """As `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` has this very package."""
        path = folder / self.file
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256

    def read_json(self, folder: Path, name: str) -> Any:
        """A file of the package in `folder`."""
        with tarfile.open(fileobj=io.BytesIO((folder / self.file).read_bytes())) as archive:
            file = archive.extractfile(f"package/{name}")
            assert file is not None, "the package of this hash has the file"
            return json.load(file)


def folder_with(packages: Sequence[Package], *, kept: Path, variable: str) -> Path:
    """A folder with all packages: the one that the environment's `variable` names, else `kept`.

    npm fetches into `kept` what is missing or damaged there. Raises DataError for packages that cannot be had.
    """
    named = os.environ.get(variable)
    folder = Path(named) if named else kept
    lacking = [one for one in packages if not one.is_in(folder)]
    if named and lacking:
        raise DataError(
            f"{variable} is {named!r}, where {len(lacking)} of {len(packages)} packages are missing or have another "
            f"SHA-256: {listed([one.file for one in lacking])}; needed all; next: mkdir -p {shlex.quote(named)} && "
            f"(cd {shlex.quote(named)} && {_command(lacking)})"
        )
    if lacking:
        said = _fetch(lacking, kept)
        if still := [one for one in lacking if not one.is_in(kept)]:
            raise DataError(
                f"found {len(packages) - len(still)} of {len(packages)} packages, and npm gave no more ({said}); "
                f"needed all by their SHA-256; next: mkdir packages && (cd packages && {_command(packages)}) where "
                f"npm reaches its registry, and here {variable}=packages before the same command"
            )
    return folder


def _fetch(packages: Sequence[Package], kept: Path) -> str:
    """Put those of `packages` into `kept` that npm gives as they have to be; what is to be said of the others."""
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".fetching-") as temporary:
        command = _command(packages).split()
        try:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"it cannot be run: {error.strerror}"
        for one in packages:
            if one.is_in(Path(temporary)):
                (Path(temporary) / one.file).replace(kept / one.file)
    return one_line(done.stderr)[:200] or "the others have another SHA-256"


def _command(packages: Sequence[Package]) -> str:
    return f"npm pack --ignore-scripts --loglevel=error {' '.join(map(str, packages))}"
