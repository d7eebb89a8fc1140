"""The deps of every stage in dvc.yaml are the source files that it imports: none is missing, none is superfluous."""

import ast
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
TABLES = {"kshot.algorithms": "meta_train.algorithm.name", "kshot.backbones": "backbone.name"}
"""Tables of plug-ins, and the setting that chooses one of each."""
BUILDS_ITS_OWN = {"pretrain": "kshot.algorithms", "pseudo_labels": "kshot.algorithms"}
"""Stages that never build the plug-in that is chosen from a table."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Who imports whom, without config.py and what the tables list: their content is the params."""
    graph = grimp.build_graph("kshot")
    graph.remove_module("kshot.config")
    for table in TABLES:
        for plugin in graph.find_modules_directly_imported_by(table):
            graph.remove_import(importer=table, imported=plugin)
    return graph


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_source_file_that_it_imports(stage: str, imports: grimp.ImportGraph) -> None:
    """Otherwise DVC would keep a result that the changed code no longer gives."""
    missing = {path for path in closure(stage, imports) if not any(covers(dep, path) for dep in source_deps(stage))}
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_source_file_that_it_does_not_import(stage: str, imports: grimp.ImportGraph) -> None:
    """Otherwise an edit that cannot matter would run it again."""
    imported = closure(stage, imports)
    superfluous = {dep for dep in source_deps(stage) if not any(covers(dep, path) for path in imported)}
    assert not superfluous, f"remove from the deps of {stage} in dvc.yaml: {sorted(superfluous)}"


def closure(stage: str, imports: grimp.ImportGraph) -> set[str]:
    """The source files of a stage; for a table of plug-ins the one that the settings choose."""
    modules = imports.find_upstream_modules(f"kshot.stages.{stage}") | {f"kshot.stages.{stage}"}
    chosen = {
        f"src/{table.replace('.', '/')}/${{{setting}}}.py"
        for table, setting in TABLES.items()
        if table in modules and BUILDS_ITS_OWN.get(stage) != table
    }
    files = {source_file(module) for module in modules - TABLES.keys() - {"kshot", "kshot.stages"}}
    return chosen | {path for path in files if holds_code(REPOSITORY / path)}


def source_deps(stage: str) -> list[str]:
    described = STAGES[stage].get("do", STAGES[stage])
    return [dep for dep in described["deps"] if dep.startswith("src/") and not dep.endswith(".j2")]


def covers(dep: str, path: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


def source_file(module: str) -> str:
    path = Path("src", *module.split("."))
    return str(path / "__init__.py" if (REPOSITORY / path).is_dir() else path.with_suffix(".py"))


def holds_code(path: Path) -> bool:
    """Whether there is more in a file than its docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)
