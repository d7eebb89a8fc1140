"""A stage has one name: its key in dvc.yaml, module, section of params.yaml, folder of outputs and task."""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from kshot.config import Params, load_params
from kshot.project.dvc import stage_order
from kshot.stages import STAGES

REPOSITORY = Path(__file__).parents[2]
GRAPH = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
ITEM = "${item}"


def test_the_flow_runs_the_stages_of_dvc_yaml_in_the_order_of_the_pipeline(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text("{cross_domain: [], seeds: []}")
    single = tuple(name for name in GRAPH if "foreach" not in GRAPH[name])
    assert stage_order(tmp_path) == single
    (tmp_path / "params.yaml").write_text("{cross_domain: [maps, seals], seeds: [2]}")
    found = stage_order(tmp_path)
    assert set(found) == {*single, "cross_domain@maps", "cross_domain@seals", "seeds@2"}
    assert tuple(name for name in found if name in single) == single


def test_every_stage_of_dvc_yaml_is_in_the_table_with_the_module_of_its_name() -> None:
    assert {name: f"kshot.stages.{name}" for name in GRAPH} == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_by_the_one_command(stage: str) -> None:
    item = f" {ITEM}" if "do" in GRAPH[stage] else ""
    assert GRAPH[stage].get("do", GRAPH[stage])["cmd"] == f"python -m kshot stage {stage}{item}"


def test_every_stage_has_a_section_of_its_name_in_the_settings() -> None:
    assert STAGES.keys() <= {field.name for field in fields(Params)}


@pytest.mark.parametrize("params", sorted(REPOSITORY.glob("presets/*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_complete(params: Path) -> None:
    load_params(params)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_reads_its_own_section_and_writes_its_own_folder(stage: str) -> None:
    described = GRAPH[stage].get("do", GRAPH[stage])
    assert stage in described["params"] or "do" in GRAPH[stage]  # a listed dataset says nothing of the others
    assert described["outs"] == [f"artifacts/{stage}" + ("" if "do" not in GRAPH[stage] else f"/{ITEM}")]


@pytest.mark.parametrize("stage", STAGES)
def test_every_source_that_a_stage_names_exists(stage: str) -> None:
    described = GRAPH[stage].get("do", GRAPH[stage])
    sources = [_with_any_plug_in(dep) for dep in described["deps"] if dep.startswith("src/")]
    assert f"src/kshot/stages/{stage}.py" in sources
    assert [source for source in sources if not any(REPOSITORY.glob(source))] == []


def _with_any_plug_in(dep: str) -> str:
    """The pattern of files that a dep may mean: params.yaml says which plug-in."""
    return re.sub(r"\$\{[\w.]+\}", "[a-z]*", dep)
