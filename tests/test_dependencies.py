"""pyproject.toml declares what the code imports, no more and no less; the lock has no address in it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OWN = {"bench", "flows", "infra", "kshot", "tests"}
NOT_IMPORTED = {
    "dvc": "run as a command",
    "dvc-s3": "loaded by dvc for a remote on S3",
}


def declared(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines} - {"kshot"}  # an extra may name others


def imports(*folders: str) -> dict[str, set[str]]:
    """For each third-party package that is imported, also inside functions: the distributions that have it."""
    files = (path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
    sources = [path for path in files if REPOSITORY / "bench" / "peers" not in path.parents]  # each has its environment
    names = {name for path in sources for name in imported_names(ast.parse(path.read_text()))}
    distributions = packages_distributions()
    return {
        name: {canonicalize_name(one) for one in distributions.get(name, [name])}
        for name in names - OWN - sys.stdlib_module_names
    }


def imported_names(tree: ast.Module) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_package_that_the_code_imports_is_declared() -> None:
    found = imports("src", "flows", "infra", "mlflow")
    assert {"torch", "sqlalchemy", "prefect"} <= found.keys()
    assert {
        name for name, homes in found.items() if not homes & declared("emoji", "export", "serving", "stack", "timm")
    } == set()


def test_every_package_that_tests_and_benchmarks_import_is_declared() -> None:
    known = declared("dev", "emoji", "export", "postgresql", "serving", "stack", "timm")
    assert {name for name, homes in imports("tests", "bench").items() if not homes & known} == set()


def test_every_declared_package_is_imported_or_has_a_reason() -> None:
    imported = {home for homes in imports("src", "flows", "infra", "mlflow").values() for home in homes}
    assert declared() - imported == NOT_IMPORTED.keys()


def test_the_lock_has_every_declared_package_and_no_address() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    locked = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE)}
    assert declared("dev", "emoji", "export", "postgresql", "serving", "stack", "timm") - locked == set()
    assert re.findall(r"\w+://\S*|--(?:extra-)?index\S*|--find-links\S*", lock) == []
