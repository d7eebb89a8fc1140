"""What a YAML file says to kshot is what it says to DVC, or it is refused with its line and key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kshot.config import load_params
from kshot.errors import ConfigError
from kshot.project.dvc import stage_order
from kshot.yaml_file import read_yaml, typed
from tests.tiny_project import tiny_params

ECHO = """
stages:
  named:
    cmd: echo named ${dataset.name} rate ${meta_train.training.outer_lr}
  each:
    foreach: ${cross_domain}
    do:
      cmd: echo ${item}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def tiny_with(folder: Path, *replaced: tuple[str, str]) -> Path:
    """params.yaml of the tiny project with some of its text replaced."""
    text = yaml.safe_dump(tiny_params())
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return written(folder, text)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("1e-3", 0.001),
        ("6e2", 600),
        ("1E5", 100_000),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("0", 0),
        ("-7", -7),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("'001'", "001"),
        ('"2024-01-05"', "2024-01-05"),
        ("true", True),
        ("~", None),
    ],
)
def test_plain_values_are_read_as_yaml_1_2_has_them(tmp_path: Path, typed: str, value: object) -> None:
    found = read_yaml(written(tmp_path, f"a: {typed}\n"))["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("0600", r"line 2: a.b is 0600, which YAML reads in more than one way; .* put quotes around it: '0600'"),
        ("001", r"a.b is 001, .*'001'"),
        ("0o17", "a.b is 0o17, which YAML reads in more than one way"),
        ("0x10", "a.b is 0x10, which"),
        ("1_000", "a.b is 1_000, which"),
        ("+5", r"a.b is \+5, which"),
        ("1_0.5", "a.b is 1_0.5, which is no plain finite number"),
        ("00.5", "a.b is 00.5, which is no plain finite number"),
        (".inf", "a.b is .inf, which is no plain finite number; need one such as 0.001 or 1e-3"),
        ("-.Inf", "a.b is -.Inf, which is no plain finite number"),
        (".nan", "a.b is .nan, which"),
        ("1e999", "a.b is 1e999, which is no plain finite number"),
        ("2024-01-05", r"a.b is 2024-01-05, which YAML reads as a date; .* put quotes around it: '2024-01-05'"),
        ("[1, 0600]", "a.b.1 is 0600, which"),
    ],
)
def test_a_value_that_readers_take_for_different_ones_is_refused(tmp_path: Path, typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(written(tmp_path, f"a:\n  b: {typed}\n"))
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params.yaml line 4: a.b stands in line 2 too; need it once"):
        read_yaml(written(tmp_path, "a:\n  b: 1\n  c: 1\n  b: 2\n"))


def test_what_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    for text in ("a: [1\nb: }", "a: !!python/name:os.system 3", "a: =", "a: *nowhere", "a: 1\x01"):
        with pytest.raises(ConfigError, match="params.yaml is not YAML: ") as caught:
            read_yaml(written(tmp_path, text))
        assert "\n" not in str(caught.value)


def test_an_alias_that_holds_itself_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need plain YAML values"):
        load_params(written(tmp_path, "seed: &a [*a]\n"))


@pytest.mark.parametrize(
    ("text", "needed"),
    [("glyphs", "glyphs"), ("2024", "2024"), ("no", "no"), ("001", "'001'"), ("1e5", "'1e5'"), ("true", "'true'")],
)
def test_a_text_is_put_in_quotes_where_it_needs_them(text: str, needed: str) -> None:
    assert typed(text) == needed


def test_a_byte_order_mark_and_an_empty_file_are_read(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "\ufeffa: 1\n")) == {"a": 1}
    assert read_yaml(written(tmp_path, "")) is None


@pytest.mark.parametrize("typed", ["'2024'", "2024", "no", "on", "'001'", "'2024-01-05'", "'no'", "'1.10'"])
def test_a_name_is_the_same_text_to_kshot_and_to_dvc(tmp_path: Path, typed: str) -> None:
    path = tiny_with(
        tmp_path,
        ("name: tiny", f"name: {typed}"),
        ("cross_domain: []", "cross_domain: [77, other]"),
        ("seed: 1", "seed: 3"),
    )
    path.write_text(path.read_text().replace("  training:\n", "  training:\n    outer_lr: 1e-3\n"))
    params = load_params(path)
    (tmp_path / "dvc.yaml").write_text(ECHO)
    for command in (["init", "--no-scm", "--quiet"], ["repro", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True)
    stages = read_yaml(tmp_path / "dvc.lock")["stages"]
    rate = params.meta_train.training.outer_lr
    assert stages["named"]["cmd"] == f"echo named {params.dataset.name} rate {rate}"
    assert {name for name in stages if name != "named"} == {f"each@{name}" for name in params.cross_domain}
    assert set(stage_order(tmp_path)) == stages.keys()
