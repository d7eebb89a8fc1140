"""Fixtures of a tiny project with real git, DVC and stages of one line each."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

DVC_YAML = """
stages:
  score:
    cmd: python score.py
    deps: [artifacts/fit/model, score.py]
    outs: [artifacts/evaluate]
  check:
    cmd: mkdir -p artifacts/check && cp input artifacts/check/facts
    deps: [input]
    outs: [artifacts/check]
  fit:
    cmd: python fit.py
    deps: [artifacts/check/facts, fit.py]
    outs: [artifacts/fit]
"""
FIT = """
from pathlib import Path
folder = Path("artifacts/fit/model")
folder.mkdir(parents=True, exist_ok=True)
(folder / "weights").write_text(Path("artifacts/check/facts").read_text() * 2)
print("fitted")
"""
SCORE = """
import json
from pathlib import Path
Path("artifacts/evaluate").mkdir(parents=True, exist_ok=True)
result = {"title": "5-way 1-shot", "n_query": 15, "episodes": 1000, "mode": "non-transductive", "accuracy": 0.91,
          "ci95": 0.004, "baselines": {"pixels": {"accuracy": 0.4, "ci95": 0.01}}, "pool_hash": "abc"}
metrics = {"dataset": "toy", "algorithm": "protonet", "results": [result]}
Path("artifacts/evaluate/metrics.json").write_text(json.dumps(metrics))
Path("artifacts/evaluate/report.html").write_text("<p>")
"""


@pytest.fixture(scope="session")
def workspace_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "workspace"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    shutil.copytree(REPOSITORY / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local*"))
    for name, content in {"dvc.yaml": DVC_YAML, "fit.py": FIT, "score.py": SCORE, "input": "1"}.items():
        (root / name).write_text(content)
    (root / ".gitignore").write_text("/.kshot/\n/artifacts/\n")
    return root


@pytest.fixture(scope="session")
def checked_template(workspace_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checked") / "workspace"
    shutil.copytree(workspace_template, root)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet", "check"], cwd=root, check=True)
    return root


@pytest.fixture
def workspace(workspace_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """check -> fit -> score, none of which has run; their remote is a folder."""
    return _copied(workspace_template, tmp_path, monkeypatch)


@pytest.fixture
def checked(checked_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same after its first stage."""
    return _copied(checked_template, tmp_path, monkeypatch)


def _copied(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]))
    root = tmp_path / "workspace"
    shutil.copytree(template, root)
    return root
