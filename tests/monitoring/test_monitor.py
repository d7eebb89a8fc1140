"""From a service's log to what is said of it: windows, references, feedback, and the page."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kshot.errors import DataError
from kshot.monitoring.monitor import Watched, watch
from kshot.monitoring.page import write_page
from tests.browser import check_stands_alone
from tests.monitoring.logged_answers import log_answers

NOTHING: Callable[[str], pd.DataFrame | None] = lambda model: None  # noqa: E731


def watched(folder: Path, kept: Callable[[str], pd.DataFrame | None] = NOTHING) -> Watched:
    found, reference, window = watch(folder, "parts", n_window=100, n_reference=100, kept=kept)
    assert len(window) == found.n_window and len(reference) == found.n_reference
    return found


def test_answers_like_the_first_ones_are_no_drift(tmp_path: Path) -> None:
    log_answers(tmp_path, 150)
    log_answers(tmp_path, 150, seed=1)
    found = watched(tmp_path)
    assert (found.reference, found.drift.found) == ("first", False)
    assert found.verdict == "nothing has changed that 100 answers would show"


def test_a_window_of_other_features_is_drift_and_the_share_of_unknown_items_is_told(tmp_path: Path) -> None:
    log_answers(tmp_path, 150)
    log_answers(tmp_path, 150, seed=1, shift=1.5)
    found = watched(tmp_path)
    assert found.drift.found and "features" in found.verdict and "share of unknown" in found.verdict
    before, now = found.unknown
    assert before is not None and before < 0.1 < now


def test_another_version_begins_anew(tmp_path: Path) -> None:
    log_answers(tmp_path, 150)
    log_answers(tmp_path, 210, seed=1, shift=1.5, model="models:/m/2")
    found = watched(tmp_path)
    assert (found.model, found.drift.found) == ("models:/m/2", False)


def test_before_there_are_enough_answers_they_are_held_against_those_kept_with_the_version(tmp_path: Path) -> None:
    log_answers(tmp_path, 60)
    rng = np.random.default_rng(9)
    kept = pd.DataFrame(
        {
            "features": list(rng.normal(50, 1, (300, 4))),  # other classes
            "probability": rng.uniform(0.5, 1, 300),
            "known": rng.normal(0, 1, 300),
        }
    )
    found = watched(tmp_path, lambda model: kept if model == "models:/m/1" else None)
    assert (found.reference, found.n_window, found.drift.found) == ("version", 60, False)
    assert [test.name for test in found.drift.tests] == ["answers", "probability", "known"]


def test_too_few_answers_and_an_unknown_gallery_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no answer about the gallery 'parts' .* next: kshot serve"):
        watched(tmp_path)
    log_answers(tmp_path, 60)
    with pytest.raises(DataError, match=r"found 60 answers .* next: kshot monitor --window 30"):
        watched(tmp_path)


def test_accuracy_is_that_of_the_answers_with_feedback(tmp_path: Path) -> None:
    log_answers(tmp_path, 200)
    log_answers(tmp_path, 100, seed=1, right=8)
    found = watched(tmp_path)
    assert (found.accuracy, found.n_corrected) == (0.5, 16)
    assert found.interval is not None and found.interval[0] < 0.5 < found.interval[1]


def test_the_page_stands_alone_in_a_browser(tmp_path: Path) -> None:
    log_answers(tmp_path / "log", 150)
    log_answers(tmp_path / "log", 150, seed=1, shift=1.5)
    found, reference, window = watch(tmp_path / "log", "parts", n_window=100, n_reference=100, kept=NOTHING)
    page = write_page(tmp_path / "page", found, reference, window)
    check_stands_alone(page)
    assert "Drift: " in page.read_text(encoding="utf-8")
