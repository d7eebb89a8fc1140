"""What a training says it needs and what it takes, of the command itself, on few photos."""

from pathlib import Path

import pytest

from bench import memory
from bench.memory_tables import memory_section
from bench.results import Memory, MemoryUse
from kshot.config import params_from
from kshot.yaml_file import read_yaml
from tests.bench.fake_results import MACHINE

SMALL = memory.Combination(
    title="small", size_px=32, shape={"n_way": 2, "k_shot": 1, "n_query": 4}, backbone={"name": "conv4", "width": 32}
)


def test_a_training_is_measured_as_the_command_takes_it() -> None:
    (use,) = memory.measure([SMALL], n_photos=60, per_class=5).uses
    assert use.title == "small"
    assert 2**26 < use.held <= use.peak  # torch alone holds that much
    assert 2**20 <= use.needed < 2**28


@pytest.mark.parametrize("combination", memory.COMBINATIONS, ids=lambda one: one.title)
def test_the_settings_of_every_combination_are_valid(combination: memory.Combination) -> None:
    params = params_from(
        memory.params_of(combination, read_yaml(Path("presets/photos.yaml")), "photos-28"), source="here"
    )
    assert params.task_pool.meta_train.shape.n_way == combination.shape["n_way"]
    assert params.meta_train.initial == "random"


def test_the_table_compares_what_is_held_and_needed_with_the_peak() -> None:
    use = MemoryUse(title="network", held=2**29, needed=2**30, peak=2**31)
    text = memory_section(Memory(command="python -m bench.memory", machine=MACHINE, n_steps=3, uses=(use,)))
    assert text.splitlines()[-1] == "| network | 0.50 | 1.00 | 1.50 | 2.00 | 0.75 |"
    assert "3 steps" in text
