"""An algorithm, a backbone, a built-in dataset and a stage are one file, one line of a table, and params each.

Done for real in a copy of the project: each is added, the chain runs, and what is edited afterwards makes stale what it
must and nothing else.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny_project import tiny_params

REPOSITORY = Path(__file__).parents[2]
CODE = ("dvc.yaml", "mlflow", "src", ".dvc/config", ".dvcignore", ".gitignore")

ALGORITHM = '''
from typing import Literal

import torch
from pydantic.dataclasses import dataclass as settings

from kshot.algorithms.learner import MetaLearner, embed_alone, embed_jointly
from kshot.algorithms.maths.losses import one_hot, query_cross_entropy
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class ToyConfig:
    name: Literal["toy"] = "toy"

    def build(self, backbone, problem, loss=query_cross_entropy):
        return Toy(backbone, loss)


class Toy(MetaLearner):
    """Similarity to each support item, summed by class."""

    def __init__(self, backbone, loss):
        super().__init__()
        self.backbone, self.loss = backbone, loss

    def adapt(self, support):
        features = embed_alone(self.backbone, support.x)
        return one_hot(support.y, support.n_way, like=features).transpose(1, 2) @ features

    def classify(self, adapted, query_x):
        return embed_alone(self.backbone, query_x) @ adapted.transpose(1, 2)

    def meta_loss(self, episodes, done=0.0):
        support, query = embed_jointly(self.backbone, episodes)
        members = one_hot(episodes.support_y, episodes.n_way, like=support)
        return self.loss(query @ (members.transpose(1, 2) @ support).transpose(1, 2), episodes)
'''
BACKBONE = """
from math import prod
from typing import Literal

from pydantic.dataclasses import dataclass as settings
from torch import nn

from kshot.backbones.contract import Backbone, Freeze, Weights, freeze
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class ToyBackboneConfig:
    name: Literal["toy"] = "toy"
    weights: Weights = ""
    freeze: Freeze = ()

    def build(self, item):
        return freeze(ToyBackbone(prod(item.shape)), self.freeze)


class ToyBackbone(Backbone):
    def __init__(self, n_inputs):
        super().__init__()
        self.n_features = 4
        self.linear = nn.Linear(n_inputs, 4)

    def forward(self, items, n_reference):
        return self.linear(items.flatten(1))
"""
DATASET = """
import numpy as np

from kshot.data.items import VectorKind
from kshot.data.packed import Splits
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.writer import Record

NAMES = [f"{split}{number}" for split in ("train", "val", "test") for number in range(5)]


def records():
    draw = np.random.default_rng(1)
    for name in NAMES:
        centre = 5 * draw.normal(size=6)
        for number in range(6):
            item = (centre + draw.normal(size=6)).astype(np.float32)
            yield Record(id=f"{name}/{number}", class_name=name, group="", item=item, source="toy")


def splits():
    return Splits(meta_train=tuple(NAMES[:5]), meta_val=tuple(NAMES[5:10]), meta_test=tuple(NAMES[10:]))


BUILT_IN = BuiltIn(
    item=VectorKind(size=6), source="toy", licence="none", n_items=6 * len(NAMES), records=records, splits=splits
)
"""
STAGE = """
import json

from kshot.workspace import Workspace


def run(params, workspace: Workspace) -> None:
    results = json.loads((workspace.output("evaluate") / "metrics.json").read_text())["results"]
    folder = workspace.output("toy")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best.json").write_text(json.dumps(max(result["accuracy"] for result in results)))
"""
STAGE_IN_GRAPH = """
  toy:
    cmd: python -m kshot stage toy
    deps:
      - artifacts/evaluate
      - src/kshot/stages/toy.py
      - src/kshot/workspace.py
    outs:
      - artifacts/toy
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a toy of each kind, whose whole chain has run."""
    root = tmp_path_factory.mktemp("extended")
    for name in CODE:
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    add(root, "algorithms/toy.py", ALGORITHM, "    | MAMLConfig\n", "    | MAMLConfig\n    | toy.ToyConfig\n")
    add(root, "backbones/toy.py", BACKBONE, "Conv4Config |", "Conv4Config | toy.ToyBackboneConfig |")
    add(root, "ingest/toy.py", DATASET, '    "glyphs":', '    "toy": toy.BUILT_IN,\n    "glyphs":')
    add(root, "stages/toy.py", STAGE, '    "validate":', '    "toy": "kshot.stages.toy",\n    "validate":')
    graph = root / "dvc.yaml"
    graph.write_text(graph.read_text().replace("\nmetrics:\n", f"{STAGE_IN_GRAPH}\nmetrics:\n"))
    params = tiny_params() | {"dataset": {"name": "toy"}, "backbone": {"name": "toy"}}
    params["meta_train"]["algorithm"] = {"name": "toy"}
    write_params(root, params)
    for command in (["git", "init", "--quiet"], ["git", "add", "."], ["git", *WHO, "commit", "--quiet", "-m", "toys"]):
        subprocess.run(command, cwd=root, check=True)
    run(root, "-m", "kshot", "ingest", "toy")
    run(root, "-m", "dvc", "repro")
    return root


WHO = ["-c", "user.name=test", "-c", "user.email=test@example.org"]


def add(root: Path, file: str, content: str, line: str, with_toy: str) -> None:
    """One file, and one line in the table of its package, which imports the file where it names it."""
    package = root / "src/kshot" / Path(file).parent
    (root / "src/kshot" / file).write_text(content)
    table = (package / "__init__.py").read_text()
    assert table.count(line) == 1
    table = table.replace(line, with_toy)
    if "toy." in with_toy.replace("kshot.stages.toy", ""):
        table = table.replace("\nfrom ", f"\nfrom kshot.{Path(file).parent} import toy\nfrom ", 1)
    (package / "__init__.py").write_text(table)


def write_params(root: Path, params: object) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def run(root: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", "HOME": str(root / "home")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stale(root: Path) -> set[str]:
    return set(json.loads(run(root, "-m", "dvc", "status", "--json"))) - {"data.dvc"}


def ran(root: Path) -> set[str]:
    """The stages that DVC runs to bring the project up to date."""
    lines = run(root, "-m", "dvc", "repro").splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("Running stage")}


def test_a_toy_of_each_kind_runs_through_the_chain(project: Path) -> None:
    model = json.loads((project / "artifacts/meta_train/model/model.json").read_text())["config"]
    assert (model["algorithm"]["name"], model["backbone"]["name"]) == ("toy", "toy")
    assert model["item"]["kind"] == "vector"
    assert json.loads((project / "artifacts/toy/best.json").read_text()) > 0.5
    assert stale(project) == set()


def test_an_edit_of_another_algorithm_leaves_the_run_as_it_is(project: Path) -> None:
    with _Edited(project / "src/kshot/algorithms/anil.py"), _Edited(project / "src/kshot/backbones/conv4.py"):
        assert stale(project) == set()
    with _Edited(project / "src/kshot/ingest/archive.py"), _Edited(project / "src/kshot/algorithms/__init__.py"):
        assert stale(project) == set()
    with _Edited(project / "src/kshot/algorithms/toy.py"):
        assert {"meta_train", "evaluate"} <= stale(project)
        assert not {"validate", "task_pool", "pretrain", "pseudo_labels"} & stale(project)


def test_another_seed_trains_one_model_and_neither_a_baseline_nor_where_a_run_runs_trains_any(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    write_params(project, params | {"seeds": [7]})
    assert ran(project) == {"seeds@7"}
    write_params(project, params | {"seeds": [7], "process": {"device": "cpu", "n_processes": 2}})
    assert ran(project) == set()
    pretrain = {"name": "supervised", "n_steps": 2, "validate_every": 2}
    write_params(project, yaml.safe_load((project / "params.yaml").read_text()) | {"pretrain": pretrain})
    assert {"pretrain", "evaluate"} <= ran(project) <= {"pretrain", "pseudo_labels", "evaluate", "toy"}
    assert "tiny version 1: registered" in run(project, "-m", "kshot", "register")


class _Edited:
    """A file with a comment more, while the block runs."""

    def __init__(self, path: Path) -> None:
        self._path, self._before = path, path.read_bytes()

    def __enter__(self) -> None:
        self._path.write_bytes(self._before + b"\n# a comment more\n")

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._before)
