"""python -m bench.report: docs/benchmarks.md and its pictures, from what the last runs left in .kshot/bench."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench.drivers import DRIVERS, PEERS
from bench.figures import GROWTH_AXES, growth_curves, measured, ratio_bars
from bench.frozen_tables import frozen_section
from bench.instructions import SHOWN
from bench.measure import Measurement
from bench.memory_tables import memory_section
from bench.photo_tables import photo_section
from bench.results import DISTURBED_SHARE, Frozen, Growth, Memory, Photos, Ratio, Results, Serving, load
from bench.serving_tables import serving_section
from bench.tables import machine_line, markdown_table, rounded
from bench.workloads import FLOOR_SIZES, WORKLOADS, Workload

FOLDER = Path(".kshot/bench")
GROWTH = FOLDER / "growth.json"
PHOTOS, FROZEN, MEMORY, SERVING = (FOLDER / f"{name}.json" for name in ("photos", "frozen", "memory", "serving"))
DOCS, PAGE = Path("docs"), "benchmarks.md"

_EPISODES_SCORED = 1000  # per setting, in the table of evaluation times

_GOALS = {  # against the best peer, and of the step's time in the convolutions alone; float32
    "protonet-5w1s15q": "2.0x, 60%",
    "protonet-20w5s15q": "2.7x, 64%",
    "protonet-60w1s5q": "2.7x, 64%",
    "maml-1step": "2.0x (2.4x learn2learn), 56%",
    "maml-5step": "2.0x (2.4x learn2learn), 50%",
    "fomaml-1step": "2.0x, 57%",
    "anil-1step": "2.0x, 57%",
    "evaluate-protonet": "10x",
    "sampling": "10x",
    "memory": "700 MB at most",
}


def main() -> int:
    runs = saved_results()
    if not runs:
        print(f"error: no results in {FOLDER}; next: python -m bench.run", file=sys.stderr)
        return 2
    write(runs)
    return 0


def results_file(instructions: str, folder: Path = FOLDER) -> Path:
    """Where the whole run with a set of instructions is kept."""
    return folder / f"results-{instructions}.json"


def saved_results(folder: Path = FOLDER) -> list[Results]:
    """The last whole run with each set of instructions, the widest set first."""
    others = sorted(path.stem.removeprefix("results-") for path in folder.glob("results-*.json"))
    runs = (load(Results, results_file(name, folder)) for name in dict.fromkeys([*SHOWN, *others]))
    return [results for results in runs if results is not None]


def write(runs: Sequence[Results], docs: Path = DOCS, folder: Path = FOLDER) -> None:
    """The page and its pictures; what else was measured, and lies in `folder`, has its sections there."""
    growth = load(Growth, folder / GROWTH.name)
    docs.mkdir(exist_ok=True)
    (docs / PAGE).write_text(page(runs, growth, saved_sections(folder)), encoding="utf-8")
    for results in runs:
        ratio_bars(results, _hardware(results)).savefig(docs / _picture(runs, results), dpi=120)
    if growth is not None:
        growth_curves(growth).savefig(docs / "growth.png", dpi=120)


def saved_sections(folder: Path = FOLDER) -> list[str]:
    """Those of the measurements that have a command of their own."""
    photos, frozen = load(Photos, folder / PHOTOS.name), load(Frozen, folder / FROZEN.name)
    memory, serving = load(Memory, folder / MEMORY.name), load(Serving, folder / SERVING.name)
    return [
        *([] if photos is None else [photo_section(photos)]),
        *([] if frozen is None else [frozen_section(frozen)]),
        *([] if memory is None else [memory_section(memory)]),
        *([] if serving is None else [serving_section(serving)]),
    ]


def write_section(section: str, path: Path = DOCS / PAGE) -> None:
    """One section of a page alone, in place of the one that has its title or at the end."""
    path.parent.mkdir(exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Benchmarks\n"
    title = section.partition("\n")[0]
    before, there, old = text.partition(f"\n{title}\n")
    _, next_title, rest = old.partition("\n## ")
    parts = [before.rstrip("\n"), section, *([f"## {rest}".rstrip("\n")] if there and next_title else [])]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def page(runs: Sequence[Results], growth: Growth | None, sections: Sequence[str] = ()) -> str:
    """`runs` has one or more, each with its own set of instructions."""
    return (
        "\n\n".join(
            [
                "# Benchmarks",
                *map(_introduction, runs),
                _AGAIN,
                *(f"![{_PICTURE_TITLE}, {_hardware(results)}]({_picture(runs, results)})" for results in runs),
                tables(runs),
                "## The libraries",
                _peers_table(runs),
                "## How it is measured",
                _METHOD,
                *([] if growth is None else [growth_section(growth)]),
                *sections,
            ]
        )
        + "\n"
    )


def tables(runs: Sequence[Results]) -> str:
    """Every table of numbers, for the page and for the screen: one of ratios, the others for each run."""
    sections: list[tuple[str, str, str]] = [
        ("Ratios", _ratios_table(runs), _RATIOS_NOTE),
        ("Episodes per second", _for_each(runs, _speed_table), "Whole steps, the median over the rounds."),
        ("Evaluation", _for_each(runs, _evaluation_table), _EVALUATION_NOTE),
        ("Floors", _for_each(runs, _floors_table), _FLOORS_NOTE),
        ("Memory", _for_each(runs, _memory_table), _MEMORY_NOTE),
    ]
    return "\n\n".join(f"## {title}\n\n{note}\n\n{table}" for title, table, note in sections if table)


def _for_each(runs: Sequence[Results], table: Callable[[Results], str]) -> str:
    """The tables of the runs below one another, each under its processor and instructions where there are several."""
    made = [(_hardware(results), table(results)) for results in runs]
    return "\n\n".join(f"{name}:\n\n{text}" if len(runs) > 1 else text for name, text in made if text)


def _hardware(results: Results) -> str:
    """The processor and the instructions that everything was held to."""
    return f"{results.machine.cpu}, {SHOWN.get(results.instructions, results.instructions)}"


def _picture(runs: Sequence[Results], results: Results) -> str:
    """The file of the ratios of a run; the first has the plain name."""
    return "benchmarks.png" if results is runs[0] else f"benchmarks-{results.instructions}.png"


_RATIOS_NOTE = (
    "How many times as fast as a peer kshot is: the median over the rounds, and in brackets the lowest and the "
    "highest. The best peer is the fastest of all that do the workload. `torch alone` is kshot without its native "
    "kernels, as where there is no C++ compiler, and `bf16` kshot in that arithmetic, both beside the best peer. In "
    "the row `memory` the ratio is that of peak memory. Where a processor has newer instructions than are named beside "
    "it, kshot and the peers were held back from them. The floor is the time that torch's convolutions alone would "
    "take, in float32; kshot's native kernels convolve in fewer operations, so a whole step may take less. `*` marks a "
    "number that other processes disturbed in some round."
)
_EVALUATION_NOTE = (
    f"Seconds for {_EPISODES_SCORED:,} episodes of each setting, 15 queries per class. kshot scores "
    f"{_EPISODES_SCORED:,} episodes on the meta_train classes and embeds every image once; the peers were measured "
    "on at least 50 episodes of each setting and are scaled."
)
_FLOORS_NOTE = (
    "Milliseconds for one forward and backward pass of Conv4-64. `plain` is an eager module with torch's defaults, "
    "`convolutions` its four convolutions alone, channels-last, without the input gradient of the first. An episode's "
    "floor is that of its images, where a second-order inner step counts a support image three times."
)
_MEMORY_NOTE = (
    "Resident memory of the whole process in maml-5step with 32 episodes per step. What is there before the first step "
    "is mostly torch and, for kshot, what its package imports."
)
_METHOD = (
    "- A measurement is one process: warm-up, then whole steps for the given seconds; its value is the median step.\n"
    "- A step is all of it: drawing episodes, gathering images, forward, backward, Adam. Images are 28x28 and in "
    "memory for everyone, Conv4-64 on batch statistics (evaluate-protonet: on fixed ones), float32, torch's default "
    "number of threads.\n"
    "- kshot's process is set up as its train stage sets it up (allocators, OpenMP, native kernels); peers run "
    "with the defaults that their users get.\n"
    "- In a round all drivers of a workload run one after the other, each round starting with another; ratios are "
    f"taken within a round. A measurement while others used more than {DISTURBED_SHARE:.0%} of the CPU is repeated "
    "up to three times, and the quietest counts.\n"
    "- Peers do what their own examples do, accuracy of the step included. higher's first-order variant takes the "
    "gradients at the fast weights.\n"
    "- The images are the embedded glyphs; their content does not change the time of a step.\n"
    "- bf16 is other arithmetic: read it beside float32, not instead of it. It is left out where no instructions carry "
    "it: kshot refuses it there.\n"
    "- `--isa avx2` holds oneDNN, ATen, MKL and the native kernels to AVX2, for kshot and the peers alike, through "
    "the environment of their processes; NumPy and the C library stay free. A processor that has no more than AVX2 may "
    "do other things slower too."
)


_PICTURE_TITLE = "kshot's speed as a multiple of the best peer's"
_AGAIN = (
    "`make setup` and `python -m bench.make_peers` make the environments. `python -m bench.report` makes this page "
    "again from the last run with each set of instructions."
)


def _introduction(results: Results) -> str:
    instructions = f"{SHOWN.get(results.instructions, results.instructions)} instructions"
    return (
        f"{machine_line(results.machine)} {instructions}, {results.rounds} rounds of {results.seconds:g} s per "
        f"measurement.\n\n```\n{results.command}\n```"
    )


def _ratios_table(runs: Sequence[Results]) -> str:
    """The rows of a workload stand together, one for each run that has it."""
    names = [name for name in WORKLOADS if any(workload.name == name for run in runs for workload in measured(run))]
    rows = [_ratios_row(run, WORKLOADS[name]) for name in names for run in runs if WORKLOADS[name] in measured(run)]
    titles = ["workload", "processor", "to the best peer", "which is", "to learn2learn", "torch alone", "bf16"]
    return markdown_table([*titles, "floor / step", "goal"], rows)


def _ratios_row(results: Results, workload: Workload) -> list[str]:
    best = results.best(workload.name, PEERS)
    share = _floor_share(results, workload)
    return [
        workload.name,
        _hardware(results),
        _times(results, workload, "kshot", best),
        best or "",
        _times(results, workload, "kshot", "learn2learn"),
        _times(results, workload, "kshot-torch", best),
        _times(results, workload, "kshot-bf16", best),
        f"{share.median:.0%}" if share else "",
        _GOALS.get(workload.name, ""),
    ]


def _floor_share(results: Results, workload: Workload) -> Ratio | None:
    floor_images = workload.floor_images
    if floor_images is None or workload.name == "memory":
        return None
    n_images = workload.shapes[0].n_images
    return results.floor_share(workload.name, "kshot", "floor-conv", floor_images, n_images)


def _speed_table(results: Results) -> str:
    workloads = [workload for workload in measured(results) if workload.name not in ("evaluate-protonet", "memory")]
    drivers = [name for name in DRIVERS if any(results.measurements(w.name, name) for w in workloads)]
    rows = [[w.name, *(_cell(results, w.name, name, lambda m: 1 / m.episode_s) for name in drivers)] for w in workloads]
    return markdown_table(["", *drivers], rows)


def _memory_table(results: Results) -> str:
    drivers = [name for name in DRIVERS if results.measurements("memory", name)]
    before = [_cell(results, "memory", name, lambda m: m.idle_rss_mb) for name in drivers]
    peak = [_cell(results, "memory", name, lambda m: m.peak_rss_mb) for name in drivers]
    return markdown_table(["MB", *drivers], [["before the first step", *before], ["peak", *peak]] if drivers else [])


def _cell(results: Results, workload: str, driver: str, value: Callable[[Measurement], float]) -> str:
    """The median over the rounds, marked where a measurement was disturbed; empty without one."""
    values = [value(measurement) for measurement in results.measurements(workload, driver).values()]
    mark = "*" if results.disturbed(workload, driver) else ""
    return rounded(median(values)) + mark if values else ""


def _evaluation_table(results: Results) -> str:
    name = "evaluate-protonet"
    shapes = WORKLOADS[name].shapes

    def seconds(position: int) -> Callable[[Measurement], float]:
        return lambda m: m.timings[position].episode_s * _EPISODES_SCORED

    values = [*map(seconds, range(len(shapes))), lambda m: m.episode_s * len(shapes) * _EPISODES_SCORED]
    drivers = [driver for driver in DRIVERS if results.measurements(name, driver)]
    rows = [[driver, *(_cell(results, name, driver, value) for value in values)] for driver in drivers]
    return markdown_table(["seconds", *map(str, shapes), "all four"], rows)


def _floors_table(results: Results) -> str:
    def milliseconds(position: int) -> Callable[[Measurement], float]:
        return lambda m: 1000 * m.timings[position].median_s

    values = [*map(milliseconds, range(len(FLOOR_SIZES)))]
    floors = {"floor-plain": "plain", "floor-conv": "convolutions"}
    rows = [
        [title, *(_cell(results, name, "floor", value) for value in values)]
        for name, title in floors.items()
        if results.measurements(name, "floor")
    ]
    return markdown_table(["ms", *(f"{n} images" for n in FLOOR_SIZES)], rows)


def _peers_table(runs: Sequence[Results]) -> str:
    """As the first run found them installed, and what they did in all runs."""
    rows = []
    for installation in runs[0].installations:
        records = [record for run in runs for record in run.records if record.driver == installation.peer]
        notes = {note for record in records if record.measurement for note in record.measurement.notes}
        errors = {f"{r.workload}: {r.error}" for r in records if r.error} if installation.error is None else set()
        ran = {record.workload for record in records if record.measurement}
        rows.append(
            [
                f"{installation.peer} {installation.version}",
                _code(installation.error or installation.plain_error) or "works",
                installation.recipe if installation.plain_error and not installation.error else "",
                f"{len(ran)} workloads" if ran else "nothing",
                "; ".join(filter(None, map(_code, sorted(notes | errors)))),
            ]
        )
    return markdown_table(["library", "plain installation", "what it took", "ran", "what was mended or failed"], rows)


def growth_section(growth: Growth) -> str:
    """A table for each thing that grows."""
    parts = [
        "## Growth",
        f"{machine_line(growth.machine)} kshot alone, float32, on random images; where nothing else is said 5-way "
        "1-shot with 15 queries, one episode per step for ProtoNet and four for MAML (second order, one inner step). "
        "Memory is the peak of a process.",
        f"```\n{growth.command}\n```",
        "![How the step grows](growth.png)",
    ]
    for axis, title in GROWTH_AXES.items():
        rows = [
            [
                point.algorithm,
                f"{point.value:,}",
                rounded(1000 * point.measurement.timings[0].median_s),
                rounded(1 / point.measurement.episode_s),
                rounded(point.images / point.measurement.episode_s) if point.algorithm != "sampling" else "",
                f"{point.measurement.peak_rss_mb:,.0f}",
                "*" if point.measurement.others_share > DISTURBED_SHARE else "",
            ]
            for point in growth.points
            if point.axis == axis
        ]
        if rows:
            titles = ["", title, "ms per step", "episodes/s", "images/s", "MB", "disturbed"]
            parts.append(f"### By {title}\n\n{markdown_table(titles, rows)}")
    return "\n\n".join(parts)


def _times(results: Results, workload: Workload, driver: str, rival: str | None) -> str:
    """A ratio with its extremes, marked where either side was disturbed; empty without one."""
    ratio = None if rival is None else results.ratio(workload.name, driver, rival)
    if rival is None or ratio is None:
        return ""
    mark = "*" if any(results.disturbed(workload.name, name) for name in (driver, rival)) else ""
    return f"{ratio.median:.2f}x{mark} ({ratio.low:.2f}..{ratio.high:.2f})"


def _code(text: str | None) -> str:
    """An error line as code that stays in one cell of a table."""
    return f"`{text.replace('|', '/').replace('`', chr(39))}`" if text else ""


if __name__ == "__main__":
    sys.exit(main())
