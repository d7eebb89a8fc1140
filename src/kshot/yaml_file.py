"""Files in YAML 1.2, read as DVC reads them: what a setting is here, it is in the graph too.

Refused is what one reader takes for another value than the next, or than the person who wrote it meant: numbers that
are not written plainly, dates, infinite numbers, and a key that stands twice.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kshot.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class _Constructor(SafeConstructor):
    def construct_yaml_float(self, node: ScalarNode) -> float:
        """A whole number with an exponent, such as 6e2, is an integer: equal to DVC's, and fit where one is needed."""
        value: float = super().construct_yaml_float(node)
        return int(value) if "e" in node.value.lower() and value.is_integer() else value


_Constructor.add_constructor(f"{_TAG}float", _Constructor.construct_yaml_float)


def read_yaml(path: Path) -> Any:
    """What the file says. Raises FileNotFoundError, and ConfigError with line and key of what cannot be read safely."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = _reader().compose(text)
        if document is not None:
            for trouble in _troubles(document, (), set()):
                raise ConfigError(f"{path} {trouble}")
        return _reader().load(text)
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def typed(text: str) -> str:
    """The text as it has to stand in a file to be read as that text: in quotes where YAML would see something else."""
    return text if _reader().load(text) == text or _INTEGER.fullmatch(text) else f"'{text}'"


def _reader() -> YAML:
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    return reader


def _troubles(node: Node, key: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """What is wrong in a node and below; a node that several aliases name is looked at once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        if trouble := _trouble(node):
            yield f"line {node.start_mark.line + 1}: {'.'.join(key) or 'the file'} is {node.value}, {trouble}"
    elif isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            yield from _troubles(item, (*key, str(number)), seen)
    elif isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for name, value in node.value:
            line, text = name.start_mark.line + 1, str(name.value)
            if isinstance(name, ScalarNode) and text in lines:
                yield f"line {line}: {'.'.join((*key, text))} stands in line {lines[text]} too; need it once"
            lines[text] = line
            yield from _troubles(value, (*key, text), seen)


def _trouble(node: ScalarNode) -> str:
    """What is wrong with a scalar; "" where nothing is. Quotes make a text of anything."""
    text, quoted = node.value, f"for a text put quotes around it: '{node.value}'"
    match str(node.tag).removeprefix(_TAG):
        case "int" if not _INTEGER.fullmatch(text):
            return f"which YAML reads in more than one way; need a plain number without leading zeros or _; {quoted}"
        case "float" if not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
            return f"which is no plain finite number; need one such as 0.001 or 1e-3; {quoted}"
        case "timestamp":
            return f"which YAML reads as a date; {quoted}"
    return ""
