"""The section of the report on frozen encoders: what their kept features save."""

from statistics import median

from bench.results import DISTURBED_SHARE, Frozen, spread
from bench.tables import machine_line, markdown_table, rounded

EMBED, KEPT_STEP, EMBEDDED_STEP = "embed", "step on kept features", "step that embeds again"

_TITLE = "## Frozen encoders"
_NOTE = (
    "{encoder} with nothing to train, on {n_items:,} drawn photos of 128 pixels. Each item is embedded once and its "
    "features are kept; a step of the linear adapter of 512 (20-way 1-shot, 4 queries per class, one episode) then "
    "reads them, and is timed beside the same step that embeds its items again; the goal is 50 times. The other rows "
    "score {n_episodes:,} 5-way 5-shot episodes of 15 queries per class with a head on the kept features; the goal is "
    "3 s. The median over the rounds; `*` marks a number that other processes disturbed in some round."
)


def frozen_section(frozen: Frozen) -> str:
    names = list(dict.fromkeys(one.name for one in frozen.timings))
    return "\n\n".join(
        [
            _TITLE,
            machine_line(frozen.machine),
            f"```\n{frozen.command}\n```",
            _NOTE.format(encoder=frozen.encoder, n_items=frozen.n_items, n_episodes=frozen.n_episodes),
            markdown_table(["", "seconds", "per second"], [_row(frozen, name) for name in names]),
            _gain(frozen),
        ]
    )


def _row(frozen: Frozen, name: str) -> list[str]:
    timings = frozen.of(name).values()
    seconds = median(one.seconds for one in timings)
    done = {EMBED: f"{rounded(frozen.n_items / seconds)} items"}
    if name in (KEPT_STEP, EMBEDDED_STEP):
        done[name] = f"{rounded(1 / seconds)} episodes"
    mark = "*" * any(one.others_share > DISTURBED_SHARE for one in timings)
    return [name, rounded(seconds) + mark, done.get(name, f"{rounded(frozen.n_episodes / seconds)} episodes")]


def _gain(frozen: Frozen) -> str:
    kept, embedded = frozen.of(KEPT_STEP), frozen.of(EMBEDDED_STEP)
    ratio = spread(embedded[number].seconds / kept[number].seconds for number in sorted(kept.keys() & embedded.keys()))
    if ratio is None:
        return ""
    return (
        f"A step on kept features is {ratio.median:.0f} times as fast as one that embeds again "
        f"({ratio.low:.0f} to {ratio.high:.0f}, taken within a round)."
    )
