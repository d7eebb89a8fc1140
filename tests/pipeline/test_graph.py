"""The deps of every stage in dvc.yaml must be complete."""

from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_every_source_file_that_it_imports(name: str) -> None:
    """Otherwise DVC would keep a result that the changed code no longer gives."""
    graph = grimp.build_graph("kshot")
    graph.remove_module("kshot.config")
    module = f"kshot.stages.{name}"
    imported = {source_file(m) for m in graph.find_upstream_modules(module) | {module}}
    imported = {path for path in imported if (REPOSITORY / path).read_text().strip()}
    deps = STAGES[name].get("do", STAGES[name])["deps"]
    missing = {path for path in imported if not any(path == dep or path.startswith(dep + "/") for dep in deps)}
    assert not missing, f"add to the deps of {name} in dvc.yaml: {sorted(missing)}"


def source_file(module: str) -> str:
    path = Path("src", *module.split("."))
    return str(path / "__init__.py" if (REPOSITORY / path).is_dir() else path.with_suffix(".py"))
