"""Two versions side by side, from what the real MLflow holds of their runs."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from kshot.errors import ModelError
from kshot.registry.comparison import Change, compare
from kshot.registry.comparison_table import to_terminal
from tests.registry.test_gate import add_version
from tests.tiny_dataset import noise, tiny_dataset


def write_data(root: Path, *, grown: bool = False) -> None:
    shutil.rmtree(root / "data" / "tiny", ignore_errors=True)
    data = tiny_dataset()
    if grown:
        data.append(noise(5, seed=999), "train/new", version=2)
        data.splits["meta_train"].append("train/new")
        data.splits["meta_train"].remove("train/c0")
        data.splits["meta_val"].append("train/c0")
    data.write(root / "data" / "tiny")


def test_what_differs_is_told_and_what_does_not_is_not(project: Path) -> None:
    write_data(project)
    add_version(project, "1", accuracy=0.5)
    write_data(project, grown=True)
    add_version(project, "2", accuracy=0.6)
    found = compare("tiny", 1, 2, project)
    assert found.overall is not None and found.overall.mean == pytest.approx(0.1)
    [setting] = found.settings
    assert (setting.name, setting.before, setting.after) == (
        "3w1s",
        pytest.approx(0.5, abs=0.01),
        pytest.approx(0.6, abs=0.01),
    )
    assert setting.difference == found.overall
    assert {(change.name, change.before, change.after) for change in found.classes} == {
        ("a", 0.5, 0.6),
        ("b", 0.5, 0.6),
    }
    assert (found.data.classes_added, found.data.classes_removed) == (("train/new",), ())
    assert found.data.classes_moved == (Change(name="train/c0", before="meta_train", after="meta_val"),)
    assert (found.data.items_added, found.data.items_removed) == (5, 0)
    assert (found.params, found.code, found.same_model) == ((), (), False)

    console = Console(width=120, record=True)
    console.print(to_terminal(found))
    text = console.export_text()
    for words in (
        "tiny: better, +10.00 ± 0.00 points over all settings",
        "data: 5 items added, 0 removed",
        "1 classes added: train/new",
        "train/c0 (meta_train -> meta_val)",
        "settings: the same",
    ):
        assert words in text, words


def test_versions_scored_on_other_episodes_have_no_difference(project: Path) -> None:
    write_data(project)
    add_version(project, "1", accuracy=0.5)
    add_version(project, "2", accuracy=0.6, episodes="f" * 64)
    found = compare("tiny", 1, 2, project)
    assert found.overall is None
    assert found.settings[0].difference is None
    assert found.data.is_none


def test_a_version_that_is_not_there_is_named(project: Path) -> None:
    write_data(project)
    add_version(project, "1", accuracy=0.5)
    with pytest.raises(ModelError, match="tiny has no version 2; known: 1"):
        compare("tiny", 1, 2, project)
