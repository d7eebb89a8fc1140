"""The page of a registered version, from the real MLflow, opened in a real browser."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kshot.config import Params, load_params
from kshot.errors import ModelError, StageError
from kshot.registry.page import write_run_report
from kshot.tracking import default_tracking_uri, fetch_model, rollback
from tests.browser import check_stands_alone
from tests.registry.test_gate import add_version, decided
from tests.tiny_dataset import noise, tiny_dataset
from tests.tiny_project import tiny_params, write_project

pytestmark = pytest.mark.usefixtures("smoke_test_here")


@pytest.fixture
def params(project: Path) -> Params:
    write_project(project, tiny_params())
    return load_params(project / "params.yaml")


def words(page: str) -> str:
    return page.partition('<p class="words">')[2].partition("</p>")[0]


def test_the_first_line_says_what_came_of_the_version(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    undecided = write_run_report("tiny", 1, project).read_text()
    assert words(undecided).startswith("Version 1 is registered; nothing was decided on it yet.")
    decided(project, params)
    add_version(project, "2", accuracy=0.4)
    decided(project, params)
    add_version(project, "3", accuracy=0.6)
    waiting = replace(params.register.promotion, mode="dry_run")
    decided(project, params, mode=waiting.mode)
    first, worse, better = (words(write_run_report("tiny", n, project).read_text()) for n in (1, 2, 3))
    assert first.startswith("Version 1 is champion. It recognises held-out classes of tiny with 50.00")
    assert worse.startswith("Version 2 is refused: worse than version 1 by 10.00 &plusmn; 0.00 points.")
    assert better.startswith("Version 3 may be promoted; version 1 is champion: better than version 1 by 10.00")


def test_a_champion_that_was_rolled_back_or_replaced_is_told_as_such(project: Path, params: Params) -> None:
    for key, accuracy in (("1", 0.5), ("2", 0.6)):
        add_version(project, key, accuracy=accuracy)
        decided(project, params)
    replaced = words(write_run_report("tiny", 1, project).read_text())
    assert replaced.startswith("Version 1 was champion; version 2 is champion.")
    rollback("tiny", project, reason="complaints", by="test")
    back = words(write_run_report("tiny", 2, project).read_text())
    assert back.startswith("Version 2 was rolled back (complaints); version 1 is champion: better than version 1")
    assert words(write_run_report("tiny", 1, project).read_text()).startswith("Version 1 is champion.")


def test_a_version_that_failed_its_smoke_test_says_so(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    weights = fetch_model("models:/tiny/1", project).folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"zzzz")
    with pytest.raises(StageError, match="fails its smoke test"):
        decided(project, params)
    state = words(write_run_report("tiny", 1, project).read_text())
    assert state.startswith("Version 1 is not champion: version 1 of tiny fails its smoke test")


def test_the_page_has_decision_changes_data_cost_and_lineage(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    decided(project, params)
    add_version(project, "2", accuracy=0.4)
    decided(project, params)
    path = write_run_report("tiny", 2, project)
    page = path.read_text()
    for part in (
        "<h2>The decision</h2>",
        "at least -10.00 points",
        "<h2>What changed since version 1</h2>",
        "Accuracy: worse, -10.00 ± 0.00 points over all settings.",
        "Data: the same.",
        "<h2>Accuracy on held-out classes</h2>",
        "<strong>near duplicates</strong>: 3 pairs; needed at most 0",
        "<dd>1.5 ms</dd>",
        "<dd>0.25 ms</dd>",
        "<dd>1,000</dd>",
        "weights_sha256",
    ):
        assert part in page, part
    client = MlflowClient(default_tracking_uri(project))
    run_id = str(client.get_model_version("tiny", "2").run_id)
    attached = Path(client.download_artifacts(run_id, "report.html"))
    assert attached.read_bytes() == path.read_bytes()


def test_names_of_new_classes_are_told_as_they_are_written(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    decided(project, params)
    grown = tiny_dataset(n_classes=5, n_images=6)
    grown.append(noise(6, seed=99), "train/New_ABC", version=2)
    grown.splits["meta_train"].append("train/New_ABC")
    shutil.rmtree(project / "data" / "tiny")
    grown.write(project / "data" / "tiny")
    add_version(project, "2", accuracy=0.6)
    decided(project, params)
    page = write_run_report("tiny", 2, project).read_text()
    assert "Data: 6 items added, 0 removed. 1 classes added: train/New_ABC." in page


def test_the_page_stands_alone_in_a_browser(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    decided(project, params)
    add_version(project, "2", accuracy=0.6)
    decided(project, params)
    check_stands_alone(write_run_report("tiny", 2, project))


def test_a_version_that_is_not_there_is_named(project: Path, params: Params) -> None:
    add_version(project, "1", accuracy=0.5)
    with pytest.raises(ModelError, match="tiny has no version 7; known: 1"):
        write_run_report("tiny", 7, project)
