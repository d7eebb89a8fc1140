"""A copy of this project in a folder of its own, with a repository and data of its own, and the train flow on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
CODE = ("dvc.yaml", "flows", "mlflow", "src", ".dvc/config", ".dvcignore", ".gitignore")


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def copied_project(root: Path, params: dict[str, Any], add_data: Callable[[Path], object] = lambda root: None) -> Path:
    """This project without its data, with these params and the data that `add_data` writes; all of it committed."""
    for name in CODE:
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    add_data(root)
    git(root, "init", "--quiet")
    if (root / "data").is_dir():
        subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "data"], cwd=root, check=True)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "tiny")
    return root


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "HOME": str(root / "home")}


def start_flow(root: Path, log: Path) -> subprocess.Popen[bytes]:
    (root / "home").mkdir(exist_ok=True)
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.train"],
            cwd=root,
            env=environment(root),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_flow(root: Path) -> str:
    log = root / "flow.log"
    code = start_flow(root, log).wait(timeout=240)
    output = log.read_text()
    assert code == 0, output
    return output
