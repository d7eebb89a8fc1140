"""The smoke test of a registered version, in an interpreter of its own as a server has it."""

import sys
from pathlib import Path

import pytest

from kshot.errors import StageError
from kshot.tracking import RunRecord, move_champion, register, version_with
from kshot.tracking import smoke_test as module


@pytest.fixture
def registered(record: RunRecord) -> Path:
    """The root of a registry with version 1 of `toy`, which is not champion."""
    register(record)
    return record.root


def promote(root: Path) -> None:
    move_champion("toy", root, version=1, expected=None, reason="better", by="test")


def stored_source(root: Path) -> Path:
    """kshot as it was registered with the model."""
    [folder] = (root / ".kshot" / "mlartifacts" / "models").glob("*/artifacts/code/kshot")
    return folder


def test_a_sound_version_passes_whatever_kshot_the_caller_has(
    registry: str, record: RunRecord, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(record)
    path = tmp_path_factory.mktemp("path")
    (path / "kshot").mkdir()
    (path / "kshot" / "__init__.py").write_text("raise ImportError('the kshot of the caller')")
    monkeypatch.setenv("PYTHONPATH", str(path))
    promote(record.root)
    assert version_with("toy", "champion", record.root) == 1
    assert not list(record.root.rglob("*.pyc")), "the registered source stays as it was"


def test_a_version_whose_registered_source_is_broken_is_refused(registered: Path) -> None:
    source = stored_source(registered) / "serving" / "classifier.py"
    source.write_text(source.read_text() + "\nraise RuntimeError('half a file')\n")
    assert "kshot.serving.classifier" in sys.modules, "the kshot of this process is whole"
    with pytest.raises(StageError, match=r"^version 1 of toy fails its smoke test: .*Error: half a file"):
        promote(registered)
    assert version_with("toy", "champion", registered) is None


def test_a_version_that_was_registered_without_a_module_is_refused(registered: Path) -> None:
    (stored_source(registered) / "model.py").unlink()
    with pytest.raises(StageError, match=r"fails its smoke test: .*No module named 'kshot\.model'"):
        promote(registered)
    assert version_with("toy", "champion", registered) is None


HALVED = """
_predict = FewShotClassifier.predict

def _halved(self, *call):
    found = _predict(self, *call)
    return type(found)(labels=found.labels, probabilities=found.probabilities / 2)

FewShotClassifier.predict = _halved
"""


def test_a_version_whose_registered_source_answers_otherwise_is_refused(registered: Path) -> None:
    source = stored_source(registered) / "serving" / "classifier.py"
    source.write_text(source.read_text() + HALVED)
    with pytest.raises(StageError, match=r"fails its smoke test: it answers \[\[0\.\d+ +0\.\d+\]\]; need \[\[0"):
        promote(registered)
    assert version_with("toy", "champion", registered) is None


def test_a_version_that_does_not_answer_in_time_is_refused(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT_S", 0.5)
    source = stored_source(registered) / "__init__.py"
    source.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(StageError, match=r"version 1 of toy fails its smoke test: no answer in 0\.5 s; need one; next"):
        promote(registered)


def test_a_version_that_ends_its_process_is_refused(registered: Path) -> None:
    (stored_source(registered) / "__init__.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(StageError, match="fails its smoke test: exit code 7 without an error$"):
        promote(registered)
