"""The pictures of the report."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.drivers import PEERS
from bench.results import Growth, Ratio, Results
from bench.workloads import WORKLOADS, Workload

GROWTH_AXES = {
    "n_way": "classes of an episode",
    "k_shot": "support images of a class",
    "image_size": "pixels of a side",
    "episodes_per_step": "episodes of a step",
    "classes": "classes of the dataset",
    "processes": "processes",
}


def measured(results: Results) -> list[Workload]:
    """The workloads that a run measured, in the table's order, without the floors."""
    names = {record.workload for record in results.records}
    return [workload for name, workload in WORKLOADS.items() if name in names and workload.kind != "floor"]


def ratio_bars(results: Results, hardware: str) -> Figure:
    """Speed as a multiple of the best peer's, with the extremes over the rounds; `hardware` is the title."""
    rows: list[tuple[Workload, str, Ratio]] = []
    for workload in reversed(measured(results)):
        best = results.best(workload.name, PEERS)
        for driver in ("kshot-bf16", "kshot"):
            ratio = best and results.ratio(workload.name, driver, best)
            if ratio:
                rows.append((workload, driver, ratio))
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = {"kshot": "tab:blue", "kshot-bf16": "tab:cyan"}
    for position, (_, driver, ratio) in enumerate(rows):
        reach = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axes.barh(position, ratio.median - 1, left=1, xerr=reach, capsize=2, color=colours[driver])
        axes.annotate(
            f"{ratio.median:.1f}x", (ratio.high, position), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(rows)), [f"{w.name}{', bf16' * (d == 'kshot-bf16')}" for w, d, _ in rows])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", title=hardware, xlabel="times as fast as the best peer (memory: times as small)")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlim(0.8, 1.7 * max([ratio.high for _, _, ratio in rows], default=1))
    return figure


def growth_curves(growth: Growth) -> Figure:
    """Episodes per second against each thing that grows."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(2, 3).flat
    for axes, (axis, title) in zip(panels, GROWTH_AXES.items(), strict=True):
        points = [point for point in growth.points if point.axis == axis]
        for algorithm in dict.fromkeys(point.algorithm for point in points):
            line = [point for point in points if point.algorithm == algorithm]
            speeds = [1 / point.measurement.episode_s for point in line]
            axes.plot([point.value for point in line], speeds, marker="o", label=algorithm)
        values = sorted({point.value for point in points})
        axes.set(xlabel=title, ylabel="episodes/s", xscale="log")
        axes.set_ylim(0, 1.1 * max([1 / point.measurement.episode_s for point in points], default=1))
        axes.set_xticks(values, [f"{value}" if value < 1000 else f"{value // 1000}k" for value in values])
        axes.minorticks_off()
        if points:
            axes.legend(loc="lower left")
    return figure
