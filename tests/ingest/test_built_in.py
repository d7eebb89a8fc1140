"""A built-in source is one file and one line of the table, with nothing else to change."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from kshot.data.packed import PackedDataset

SOURCE = Path(__file__).parents[2] / "src" / "kshot"
TOY = """
import numpy as np

from kshot.data.items import VectorKind
from kshot.data.packed import Splits
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.writer import Record


def records():
    for number, name in enumerate("abc"):
        yield Record(id=name, class_name=name, group="", item=np.full(2, number, dtype=np.float32), source="toy")


def splits():
    return Splits(meta_train=("a",), meta_val=("b",), meta_test=("c",))


BUILT_IN = BuiltIn(
    item=VectorKind(size=2), source="toy", licence="none", n_items=3, records=records, splits=splits
)
"""


def test_a_source_is_added_by_one_file_and_one_line(tmp_path: Path) -> None:
    kept_out = shutil.ignore_patterns("__pycache__", "*.so")
    copy = Path(shutil.copytree(SOURCE, tmp_path / "src" / "kshot", ignore=kept_out))
    (copy / "ingest" / "toy.py").write_text(TOY)
    table = copy / "ingest" / "__init__.py"
    text = table.read_text().replace("glyphs, omniglot\n", "glyphs, omniglot, toy\n", 1)
    table.write_text(text.replace('"glyphs": glyphs.BUILT_IN,', '"glyphs": glyphs.BUILT_IN,\n    "toy": toy.BUILT_IN,'))

    command = [sys.executable, "-m", "kshot", "ingest", "toy"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "data/toy: 3 items (3 new), 3 classes (1 meta_train, 1 meta_val, 1 meta_test)" in done.stdout
    assert PackedDataset.open(tmp_path / "data" / "toy").gather(np.array([2])).tolist() == [[2, 2]]
