"""Results of runs that never were."""

from dataclasses import dataclass, field

from bench.measure import Measurement, Timing
from bench.results import Growth, GrowthPoint, Installation, Machine, Record, Results

MACHINE = Machine(
    cpu="Abacus 3000", cores=2, memory_gib=8, system="Linux", python="3.11.7", torch="2.14.1", date="2026-01-02"
)


def measurement(
    episode_s: float, *, peak_rss_mb: float = 100, others_share: float = 0, notes: tuple[str, ...] = ()
) -> Measurement:
    timing = Timing(name="5w1s", episodes=2, steps=3, median_s=2 * episode_s, p10_s=episode_s, p90_s=3 * episode_s)
    return Measurement(
        timings=(timing,), idle_rss_mb=50, peak_rss_mb=peak_rss_mb, others_share=others_share, notes=notes
    )


@dataclass
class FakeRun:
    installations: list[Installation] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def add(
        self, number: int, workload: str, driver: str, episode_s: float, *, peak_rss_mb: float = 100,
        others_share: float = 0, notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        made = measurement(episode_s, peak_rss_mb=peak_rss_mb, others_share=others_share, notes=notes)
        self.records.append(Record(round=number, workload=workload, driver=driver, measurement=made))

    def add_parts(self, number: int, workload: str, driver: str, median_s: dict[str, float]) -> None:
        timings = tuple(
            Timing(name=name, episodes=1, steps=3, median_s=seconds, p10_s=seconds, p90_s=seconds)
            for name, seconds in median_s.items()
        )
        made = Measurement(timings=timings, idle_rss_mb=50, peak_rss_mb=100, others_share=0)
        self.records.append(Record(round=number, workload=workload, driver=driver, measurement=made))

    def fail(self, number: int, workload: str, driver: str, error: str) -> None:
        self.records.append(Record(round=number, workload=workload, driver=driver, error=error))

    def results(self, instructions: str = "avx512") -> Results:
        return Results(
            command="python -m bench.run",
            rounds=3,
            seconds=3,
            machine=MACHINE,
            instructions=instructions,
            installations=tuple(self.installations),
            records=tuple(self.records),
        )


def fake_growth(made: Measurement) -> Growth:
    points = tuple(
        GrowthPoint(axis=axis, algorithm=algorithm, value=value, images=80, measurement=made)
        for axis, algorithm, value in (("n_way", "maml", 5), ("n_way", "maml", 20), ("classes", "sampling", 1_000_000))
    )
    return Growth(command="python -m bench.growth", machine=MACHINE, points=points)
