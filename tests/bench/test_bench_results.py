from pathlib import Path

import pytest

from bench.drivers import DRIVERS, in_turn
from bench.measure import Measurement, Timing
from bench.results import Growth, Results, load, save
from bench.workloads import WORKLOADS
from tests.bench.fake_results import FakeRun, fake_growth, measurement


def test_ratios_are_taken_within_a_round_and_only_where_both_sides_are() -> None:
    run = FakeRun()
    for number, (ours_s, theirs_s) in enumerate([(1, 2), (2, 8), (3, 9)]):
        run.add(number, "maml-1step", "kshot", ours_s)
        run.add(number, "maml-1step", "higher", theirs_s)
    run.add(3, "maml-1step", "higher", 1000)
    ratio = run.results().ratio("maml-1step", "kshot", "higher")
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == (3, 2, 4)


def test_there_is_no_ratio_to_a_driver_that_failed() -> None:
    run = FakeRun()
    run.add(0, "maml-1step", "kshot", 1)
    run.fail(0, "maml-1step", "higher", "TypeError: no")
    assert run.results().ratio("maml-1step", "kshot", "higher") is None
    assert run.results().best("maml-1step", ["higher"]) is None


def test_the_best_peer_has_the_lowest_median() -> None:
    run = FakeRun()
    for number, seconds in enumerate([1, 5, 5]):
        run.add(number, "maml-1step", "higher", seconds)
        run.add(number, "maml-1step", "torchopt", 4)
    assert run.results().best("maml-1step", ["higher", "torchopt"]) == "torchopt"


def test_memory_is_compared_by_its_peak() -> None:
    run = FakeRun()
    run.add(0, "memory", "kshot", 9, peak_rss_mb=500)
    run.add(0, "memory", "higher", 1, peak_rss_mb=750)
    ratio = run.results().ratio("memory", "kshot", "higher")
    assert ratio is not None
    assert ratio.median == 1.5


def test_a_measurement_is_disturbed_when_others_used_more_than_four_percent() -> None:
    run = FakeRun()
    run.add(0, "sampling", "kshot", 1, others_share=0.04)
    run.add(0, "sampling", "easyfsl", 1, others_share=0.041)
    assert not run.results().disturbed("sampling", "kshot")
    assert run.results().disturbed("sampling", "easyfsl")


def test_seconds_per_episode_are_the_mean_over_the_parts() -> None:
    timings = tuple(
        Timing(name=str(n), episodes=n, steps=1, median_s=1, p10_s=1, p90_s=1)
        for n in (2, 4)  # 1/2 and 1/4 s per episode
    )
    whole = Measurement(timings=timings, idle_rss_mb=1, peak_rss_mb=1, others_share=0)
    assert whole.episode_s == 0.375


@pytest.mark.parametrize(
    ("workload", "images"),
    [("protonet-20w5s15q", 400), ("maml-1step", 90), ("maml-5step", 150), ("fomaml-1step", 80), ("anil-1step", 80)],
)
def test_the_floor_of_an_episode_counts_the_passes_over_its_images(workload: str, images: int) -> None:
    assert WORKLOADS[workload].floor_images == images


def test_the_floor_share_scales_the_convolutions_to_the_episode() -> None:
    run = FakeRun()
    run.add_parts(0, "floor-conv", "floor", {"80": 0.008, "360": 1, "400": 1})
    run.add(0, "maml-1step", "kshot", 0.018)
    share = run.results().floor_share("maml-1step", "kshot", "floor-conv", 90, 80)
    assert share is not None
    assert share.median == pytest.approx(0.5)


def test_every_driver_starts_a_round_once() -> None:
    drivers = [DRIVERS[name] for name in ("kshot", "higher", "torchopt")]
    firsts = [in_turn(drivers, number)[0].name for number in range(3)]
    assert sorted(firsts) == ["higher", "kshot", "torchopt"]
    assert {driver.name for driver in in_turn(drivers, 2)} == {driver.name for driver in drivers}


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = FakeRun()
    run.add(0, "maml-1step", "kshot", 1)
    run.fail(0, "maml-1step", "higher", "TypeError: no")
    save(run.results(), tmp_path / "new" / "results.json")
    save(fake_growth(measurement(1)), tmp_path / "growth.json")
    assert load(Results, tmp_path / "new" / "results.json") == run.results()
    assert load(Growth, tmp_path / "growth.json") == fake_growth(measurement(1))
    assert load(Growth, tmp_path / "missing.json") is None
