"""docs/guide lists the algorithms as `kshot algorithms` does, with the settings that they have."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from kshot.algorithms import AlgorithmConfig
from kshot.cli.learners import Row, rows
from tests.cli.test_cli import Kshot, kshot

__all__ = ["kshot"]  # a fixture

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
CONFIGS = get_args(get_args(AlgorithmConfig)[0])


def test_the_page_has_the_table_that_the_command_prints() -> None:
    page = (GUIDE / "algorithms.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    assert table == [f"| `{row.name}` | {' | '.join(row[1:])} |" for row in rows()]


def test_the_command_prints_a_line_for_each_algorithm(kshot: Kshot, tmp_path: Path) -> None:
    done = kshot(tmp_path, "algorithms")
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [config.name for config in CONFIGS]
    for line, row in zip(lines, rows(), strict=True):
        assert re.split(r" {2,}", line) == list(row)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_what_is_said_of_an_algorithm_is_short_and_names_a_year(row: Row) -> None:
    assert all(0 < len(said) <= 105 and not said.endswith(".") for said in (row.use, row.cost))
    assert re.fullmatch(r"\D+ (19|20)\d\d", row.source)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_the_settings_in_the_guide_are_those_of_the_algorithm_with_their_defaults(config: Any) -> None:
    page = (GUIDE / "training.md").read_text(encoding="utf-8")
    (cell,) = re.findall(rf"^\| `{config.name}` \|[^|]*\|([^|]*)\|$", page, flags=re.M)
    shown = {}
    for span in re.findall(r"`(\w+: [^`]+)`", cell):
        shown |= yaml.safe_load(span)
    defaults = {field.name: field.default for field in fields(config) if field.name != "name"}
    assert MISSING not in defaults.values()
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert shown == found
