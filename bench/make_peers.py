"""python -m bench.make_peers: an environment for each peer, all with the torch of kshot's own.

A peer that cannot be installed is written down with its error line, for the report to show.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.drivers import DRIVERS, PEERS, PEERS_FOLDER, Driver
from bench.processes import error_line
from bench.results import Installation, load, save

_RECIPE = "sources, C files made again by Cython below 3, installed without dependencies"
_RECIPE_NEEDS = ("cython<3", "setuptools<80", "gym", "requests", "scipy", "tqdm")


class InstallError(Exception):
    """A command of an installation that failed; the message is its error line."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.make_peers", description=__doc__)
    parser.add_argument("--again", action="store_true", help="make also those that are there")
    again = parser.parse_args().again
    torch = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
    for name in PEERS:
        record = PEERS_FOLDER / f"{name}.json"
        known = load(Installation, record)
        if not again and known is not None and known.error is None and known.torch == torch[0]:
            print(f"{name}: there")
            continue
        installation = install(DRIVERS[name], torch)
        save(installation, record)
        print(f"{name}: {installation.error or 'installed, ' + installation.recipe}", flush=True)
    return 0


def installations() -> tuple[Installation, ...]:
    """What is known of every peer's environment."""
    missing = "not installed; next: python -m bench.make_peers"
    return tuple(
        load(Installation, PEERS_FOLDER / f"{name}.json")
        or Installation(peer=name, version=DRIVERS[name].peer_version or "", torch="", error=missing)
        for name in PEERS
    )


def install(driver: Driver, torch: Sequence[str]) -> Installation:
    """Make the environment, in the plain way and, for learn2learn, by its recipe where that fails."""
    version = driver.peer_version or ""
    folder = PEERS_FOLDER / driver.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Installation(peer=driver.name, version=version, torch=torch[0])
    try:
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        _uv("pip", "install", "--python", str(driver.python), *torch, "numpy")
    except InstallError as error:
        return replace(made, error=str(error))
    try:
        _uv("pip", "install", "--python", str(driver.python), *torch, f"{driver.name}=={version}")
        return made
    except InstallError as error:
        made = replace(made, plain_error=str(error))
    if driver.name != "learn2learn":
        return replace(made, error=made.plain_error)
    try:
        _install_from_sources(driver, version)
    except InstallError as error:
        return replace(made, error=str(error))
    return replace(made, recipe=_RECIPE)


def _install_from_sources(driver: Driver, version: str) -> None:
    """learn2learn: the sources hold C files of an old Cython, and a dependency that no installer takes any more."""
    _uv("pip", "install", "--python", str(driver.python), *_RECIPE_NEEDS)
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        _run([*pip, "--dest", temporary, f"{driver.name}=={version}"])
        for archive in Path(temporary).glob("*.tar.gz"):
            with tarfile.open(archive) as sources:
                sources.extractall(temporary, filter="data")
        code = Path(temporary) / f"{driver.name}-{version}"
        for generated in (code / "learn2learn" / "data").glob("*.c"):
            generated.unlink()
        sources_of_c = map(str, (code / "learn2learn" / "data").glob("*.pyx"))
        _run([str(driver.python), "-m", "cython", "-3", *sources_of_c])
        _uv("pip", "install", "--python", str(driver.python), "--no-deps", "--no-build-isolation", str(code))


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    _run([str(uv) if uv.exists() else shutil.which("uv") or "uv", *arguments])


def _run(command: Sequence[str]) -> None:
    environment = dict(os.environ)
    if "PIP_INDEX_URL" in environment:
        environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(error_line(done.stderr) or f"exit code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
