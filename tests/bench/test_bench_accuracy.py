"""What is compared on the glyphs, and the tables that it makes."""

from pathlib import Path

import pytest

from bench import accuracy
from bench.accuracy_rows import Row
from bench.accuracy_tables import accuracy_section
from bench.results import Accuracies, AccuracyRow
from kshot.config import params_from
from kshot.yaml_file import read_yaml
from tests.bench.fake_results import MACHINE

DEMO = read_yaml(Path("presets/demo.yaml"))
FEW = Row(
    title="few",
    changes={
        "task_pool": {"meta_val": {"n_episodes": 2}, "meta_test": {"n_episodes": 3, "n_query": 2}},
        "meta_train": {"training": {"n_steps": 1}},
    },
    settings=({"n_way": 5, "k_shot": 1},),
)


@pytest.mark.parametrize("row", [row for rows in accuracy.ROWS.values() for row in rows], ids=lambda row: row.title)
def test_the_settings_of_every_row_are_valid(row: Row) -> None:
    params = params_from(accuracy.params_of(row, DEMO), source="here")
    assert [setting.n_way for setting in params.task_pool.meta_test.settings] == [s["n_way"] for s in row.settings]


def test_what_has_a_name_is_replaced_as_a_whole_and_sections_are_laid_over_sections() -> None:
    row = Row(title="x", changes={"meta_train": {"algorithm": {"name": "maml"}, "training": {"n_steps": 3}}})
    changed = accuracy.params_of(row, DEMO)
    assert changed["meta_train"]["algorithm"] == {"name": "maml"}
    assert changed["meta_train"]["training"] == DEMO["meta_train"]["training"] | {"n_steps": 3}


def test_a_row_is_trained_and_scored_by_the_commands_of_users() -> None:
    ((row,),) = accuracy.measure([FEW])
    assert (row.title, row.mode) == ("few", "non-transductive")
    assert {setting: len(values) for setting, values in row.accuracy.items()} == {"5w1s": 3}
    assert row.minutes > 0


def test_options_stand_beside_the_first_row_episode_by_episode() -> None:
    first = AccuracyRow(title="as it is", mode="non-transductive", minutes=1, accuracy={"5w1s": [0.5, 0.6, 0.7]})
    other = AccuracyRow(title="other", mode="non-transductive", minutes=2, accuracy={"5w1s": [0.6, 0.7, 0.8]})
    text = accuracy_section(Accuracies(of="options", machine=MACHINE, rows=(first, other)))
    assert text.splitlines()[-2:] == [
        "| as it is | 60.00 ± 24.84 |  |  |  | 1.0 |  |",
        "| other | 70.00 ± 24.84 |  |  |  | 2.0 | +10.00 ± 0.00 |",
    ]


def test_learners_stand_with_the_mode_of_their_scores() -> None:
    row = AccuracyRow(title="maml", mode="transductive", minutes=1, accuracy={"20w1s": [0.5, 0.5]})
    text = accuracy_section(Accuracies(of="learners", machine=MACHINE, rows=(row,)))
    assert text.splitlines()[-1] == "| maml | transductive |  |  | 50.00 ± 0.00 |  | 1.0 |"
