"""The README, CONTRIBUTING and docs/ name only files, make targets and commands that exist."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from typer.exceptions import TyperException
from typer.main import get_command

from kshot.cli.app import app
from kshot.config import params_from
from kshot.serving.settings import ServiceSettings, read_settings

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")])
SERVING = REPOSITORY / "docs" / "guide" / "serving.md"
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))


@every_document
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        target, _, heading = link.partition("#")
        if "://" in target:
            continue
        path = document.parent / target if target else document
        if not path.exists() or (heading and heading not in headings(path)):
            broken.append(link)
    assert broken == []


@every_document
def test_every_make_target_is_one_of_the_makefile(document: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, flags=re.MULTILINE))
    assert "demo" in targets
    codes = [*lines_of(document), *spans_of(document)]
    assert {target for code in codes for target in make_targets(code)} - targets == set()


@every_document
def test_every_kshot_command_that_is_shown_as_run_is_understood(document: Path) -> None:
    assert {" ".join(words): fault for words in shown_commands(document) if (fault := fault_of(words))} == {}


@every_document
def test_every_kshot_command_that_is_named_in_a_sentence_exists(document: Path) -> None:
    named = {words[0] for code in spans_of(document) for words in kshot_words(code)}
    assert named - COMMANDS.keys() - {"COMMAND"} == set()


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "log.md"], ids=lambda path: path.name)
def test_every_path_under_src_exists(document: Path) -> None:
    """Except in the log of experiments, which names what there was at its time."""
    named = re.findall(r"src/kshot(?:/[\w.-]+)*/?", text_of(document))
    missing = {path for path in named if "NAME" not in path and not (REPOSITORY / path.rstrip("./")).exists()}
    assert missing == set()


@every_document
def test_every_setting_that_is_shown_is_one_of_params_yaml(document: Path) -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    if document.name == SERVING.name:
        return  # its settings are those of a service
    for block in yaml_blocks_of(document):
        params_from(laid_over(params, yaml.safe_load(block)), source=document.name)


def test_the_settings_of_a_service_that_are_shown_are_its_defaults(tmp_path: Path) -> None:
    (block,) = yaml_blocks_of(SERVING)
    (tmp_path / "service.yaml").write_text(block, encoding="utf-8")
    shown = read_settings(tmp_path / "service.yaml")
    assert shown == ServiceSettings()
    assert yaml.safe_load(block) == json.loads(TypeAdapter(ServiceSettings).dump_json(shown))  # and all of them


def test_every_command_is_in_the_guides_table() -> None:
    listed = {words[0] for code in spans_of(REPOSITORY / "docs" / "guide" / "README.md") for words in kshot_words(code)}
    assert COMMANDS.keys() - listed == set()


def test_every_page_of_the_guide_is_listed_in_its_contents() -> None:
    guide = REPOSITORY / "docs" / "guide"
    contents = text_of(guide / "README.md")
    assert [page.name for page in guide.glob("*.md") if page.name != "README.md" and page.name not in contents] == []


def test_the_tree_in_the_readme_is_the_tree_of_the_repository() -> None:
    tree = next(block for block in blocks_of(REPOSITORY / "README.md") if block.startswith("params.yaml"))
    inner = {name for line in tree.splitlines() if line.startswith("  ") for name in tree_entries(line)}
    outer = {name for line in tree.splitlines() if not line.startswith("  ") for name in tree_entries(line)}
    assert [name for name in outer if not (REPOSITORY / name).exists()] == []
    source = [path for path in (REPOSITORY / "src" / "kshot").iterdir() if not path.name.startswith("__")]
    assert inner == {f"{path.name}/" if path.is_dir() else path.name for path in source if path.name != "py.typed"}


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(text_of(REPOSITORY / "README.md").splitlines()) <= 150


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (".venv/bin/kshot promte", "No such command"),
        ("$ kshot rollback --why complaints", "No such option"),
        ("kshot compare 1", "Missing argument"),
        ("kshot compare one two", "valid integer"),
        ("kshot compare 1 2  # two versions", ""),
        ("kshot curate photos drpo x.png", "No such command"),
        ("kshot curate photos min-images few", "valid integer"),
        ("kshot curate photos min-images 3", ""),
        ("python -m kshot --debug history", ""),
    ],
)
def test_a_command_is_judged_as_the_command_line_judges_it(line: str, fault: str) -> None:
    (words,) = kshot_words(line)
    assert fault in fault_of(words)
    assert bool(fault) == bool(fault_of(words))


def test_a_page_is_read_as_lines_of_blocks_without_a_language_and_spans_of_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n`one` and `two`\n\n```\nmake demo\n```\n\n```yaml\nseed: 1\n```\n`three`\n", encoding="utf-8"
    )
    assert lines_of(page) == ["make demo"]
    assert spans_of(page) == ["one", "two", "three"]


def test_targets_are_found_behind_variables_and_before_them() -> None:
    assert make_targets("$ DATA=/x make omniglot") == ["omniglot"]
    assert make_targets("make rerun VERSION=1  # again") == ["rerun"]
    assert make_targets("see make demo") == []


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def headings(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text_of(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks_of(document: Path) -> Iterator[str]:
    """Fenced blocks without a language: commands, and what they print."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text_of(document), flags=re.M | re.S):
        if not language:
            yield block


def lines_of(document: Path) -> list[str]:
    return [line for block in blocks_of(document) for line in block.splitlines()]


def tree_entries(line: str) -> list[str]:
    """Files and folders in a line of a tree: what stands at its beginning or behind a gap."""
    return re.findall(r"(?:^|\s{2,})([\w./]+(?:/|\.py|\.yaml|\.dvc))(?=\s|$)", line)


def yaml_blocks_of(document: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```$", text_of(document), flags=re.M | re.S)


def laid_over(below: Any, above: Any) -> Any:
    """`below` with the keys that `above` sets, section by section; one that chooses another by name is whole."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "name" in below and above.get("name", below["name"]) != below["name"]:
        return above
    return below | {key: laid_over(below.get(key), value) for key, value in above.items()}


def spans_of(document: Path) -> list[str]:
    """What stands between backticks in sentences and tables."""
    without_blocks = re.sub(r"^ *```.*?^ *```$", "", text_of(document), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", without_blocks)


def make_targets(code: str) -> list[str]:
    """The targets of a line that calls make, such as `KSHOT_OMNIGLOT=/data make omniglot`."""
    words = shlex.split(code.removeprefix("$ "), comments=True) if re.search(r"\bmake ", code) else []
    command = list(dropwhile(lambda word: re.match(r"\w+=", word), words))
    if command[:1] != ["make"]:
        return []
    return [word for word in command[1:] if re.fullmatch(r"[a-z0-9-]+", word)]


def shown_commands(document: Path) -> Iterator[list[str]]:
    for line in lines_of(document):
        yield from kshot_words(line)


def kshot_words(code: str) -> Iterator[list[str]]:
    """The words after `kshot`, where the code calls it."""
    call = re.match(r"(?:\$ )?(?:\.venv/bin/|python -m )?kshot (?P<words>.+)", code)
    if call:
        yield list(dropwhile(lambda word: word.startswith("--"), shlex.split(call["words"], comments=True)))


def fault_of(words: list[str]) -> str:
    """What the command line has against these words, "" for nothing. They are parsed, and nothing is run."""
    name, *arguments = words
    if name not in COMMANDS:
        return f"No such command {name!r}"
    try:
        context = COMMANDS[name].make_context(name, arguments)
        if hasattr(context.command, "commands"):  # a group: its operation and the arguments of that
            rest = [*context._protected_args, *context.args]
            operation, command, arguments = context.command.resolve_command(context, rest)
            command.make_context(operation, arguments, parent=context)
    except TyperException as error:
        return error.format_message()
    return ""
