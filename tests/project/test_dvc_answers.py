"""What the real DVC says of a tiny project."""

import shutil
from pathlib import Path

import pytest

from kshot.errors import StageError
from kshot.project.dvc_answers import Changed, ask_dvc, changed_since_lock


def test_nothing_has_changed_after_a_run(checked: Path) -> None:
    assert changed_since_lock(checked, ["check"]) == ()


def test_an_output_that_the_cache_lacks_is_named(checked: Path) -> None:
    shutil.rmtree(checked / ".dvc" / "cache" / "files")
    [found] = changed_since_lock(checked, ["check"])
    assert str(found) == "artifacts/check, which stage check wrote, is not in cache"


def test_changed_and_lost_files_are_named_with_their_stage(checked: Path) -> None:
    (checked / "input").write_text("2")
    [read] = changed_since_lock(checked, ["check"])
    assert read == Changed(stage="check", path="input", state="modified", is_output=False)
    assert str(read) == "input, which stage check read, is modified"
    (checked / "input").write_text("1")
    shutil.rmtree(checked / "artifacts" / "check")
    [wrote] = changed_since_lock(checked, ["check"])
    assert str(wrote) == "artifacts/check, which stage check wrote, is deleted"


def test_a_file_that_dvcignore_names_is_no_change_of_a_folder(checked: Path) -> None:
    (checked / ".dvcignore").write_text("__pycache__\n")
    (checked / "artifacts" / "check" / "__pycache__").mkdir()
    (checked / "artifacts" / "check" / "__pycache__" / "x.pyc").touch()
    assert changed_since_lock(checked, ["check"]) == ()
    (checked / "artifacts" / "check" / "more").touch()
    assert [one.path for one in changed_since_lock(checked, ["check"])] == ["artifacts/check"]


def test_another_command_is_a_change_of_dvc_yaml(checked: Path) -> None:
    graph = checked / "dvc.yaml"
    graph.write_text(graph.read_text().replace("cp input", "cp -f input"))
    [found] = changed_since_lock(checked, ["check"])
    assert str(found) == "dvc.yaml, which stage check read, is modified (changed command)"


def test_what_dvc_cannot_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^dvc .*status .* failed: you are not inside of a DVC repo.*; next: ks"):
        changed_since_lock(tmp_path, ["check"])
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[broken")
    with pytest.raises(
        StageError, match=r"^dvc config --list failed: configuration error.*; next: kshot doctor$"
    ) as raised:
        ask_dvc(tmp_path, "config", "--list")
    assert "\n" not in str(raised.value)
