"""A stage has one name: its key in dvc.yaml, module, section of params.yaml, folder of outputs and task."""

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
    (tmp_path / "params.yaml").write_text("cross_domain: []")
    assert stage_order(tmp_path) == tuple(name for name in GRAPH if name != "cross_domain")
    (tmp_path / "params.yaml").write_text("cross_domain: [maps, seals]")
    assert set(stage_order(tmp_path)[-3:]) == {"evaluate", "cross_domain@maps", "cross_domain@seals"}


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
    sources = [dep for dep in described["deps"] if dep.startswith("src/")]
    assert f"src/kshot/stages/{stage}.py" in sources
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []
