"""The tree drawn at the top of errors.py is the tree of the classes."""

import re

from kshot import errors
from kshot.errors import KshotError


def _drawn() -> dict[str, tuple[str | None, int]]:
    """Parent and exit code of each class, by name; a branch without a code of its own has its parent's."""
    path: list[str] = []
    found: dict[str, tuple[str | None, int]] = {}
    for branch, name, words in re.findall(r"^([│├└─ ]*)(\w+Error) +(.*)$", errors.__doc__ or "", re.MULTILINE):
        path = path[: len(branch) // 4]
        parent = path[-1] if path else None
        code = re.match(r"exit (\d)", words)
        inherited = found[parent][1] if parent else 0
        found[name] = (parent, int(code[1]) if code else inherited)
        path.append(name)
    return found


def _real(kind: type[KshotError] = KshotError, parent: str | None = None) -> dict[str, tuple[str | None, int]]:
    found: dict[str, tuple[str | None, int]] = {kind.__name__: (parent, kind.exit_code)}
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= _real(child, kind.__name__)
    return found


def test_the_drawn_tree_is_the_tree_of_the_classes() -> None:
    assert _drawn() == _real()


def test_every_error_of_kshot_stands_in_errors_py() -> None:
    import kshot.cli.app
    import kshot.project.dvc
    import kshot.stages.evaluate
    import kshot.stages.meta_train  # noqa: F401

    def classes(kind: type[KshotError]) -> list[type[KshotError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in classes(child))]

    outside = {kind.__qualname__ for kind in classes(KshotError) if kind.__module__.startswith("kshot.")}
    assert outside == set(_drawn())
