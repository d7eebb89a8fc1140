"""What pytest wants of the names of test files: those of two folders are modules of one name."""

from collections import Counter
from pathlib import Path


def test_no_two_test_files_have_one_name() -> None:
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, n_files in names.items() if n_files > 1] == []
