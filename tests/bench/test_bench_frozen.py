"""The section on frozen encoders: its rates, its marks, and the gain taken within rounds."""

from pathlib import Path

from bench import frozen
from bench.frozen_tables import EMBED, EMBEDDED_STEP, KEPT_STEP, frozen_section
from bench.results import Frozen, FrozenTiming
from kshot.config import params_from
from kshot.yaml_file import read_yaml
from tests.bench.fake_results import MACHINE


def timing(number: int, name: str, seconds: float, others_share: float = 0.0) -> FrozenTiming:
    return FrozenTiming(round=number, name=name, seconds=seconds, others_share=others_share)


def test_rates_and_the_gain_of_kept_features() -> None:
    timings = (
        *(timing(number, EMBED, 4.0) for number in range(3)),
        *(timing(number, KEPT_STEP, 0.01) for number in range(3)),
        *(timing(number, EMBEDDED_STEP, 0.5 + 0.5 * number) for number in range(3)),
        *(timing(number, "ridge", 2.0, others_share=number / 10) for number in range(3)),
    )
    measured = Frozen(
        command="python -m bench.frozen", machine=MACHINE, encoder="a network", n_items=1000, n_episodes=500,
        timings=timings,
    )  # fmt: skip
    lines = frozen_section(measured).splitlines()
    assert "| embed | 4 | 250 items |" in lines
    assert "| step on kept features | 0.01 | 100 episodes |" in lines
    assert "| step that embeds again | 1 | 1 episodes |" in lines
    assert "| ridge | 2* | 250 episodes |" in lines
    assert lines[-1].startswith("A step on kept features is 100 times as fast") and "(50 to 150," in lines[-1]


def test_the_settings_are_valid() -> None:
    params = params_from(frozen.params_of(read_yaml(Path("presets/photos.yaml")), 300), source="here")
    assert [*params.task_pool.meta_test.kinds()] == ["5w5s"]
    assert params.task_pool.meta_test.n_episodes == 300
