"""The section of the report on serving: rates and times of three servers of the same model."""

import statistics

from bench.results import Serving, ServingLoad
from bench.tables import machine_line, markdown_table

_TITLE = "## Serving"
_NOTE = (
    "The champion ({model}) on one process, 5 classes of 5 examples, PNGs of 28 pixels, and wrk with one thread on the "
    "same cores: medians over {rounds} rounds, with the least and the most rate. `classify` asks a gallery, or what a "
    "server adapted at its start; `adapt and classify` sends the examples along, which is all that a pyfunc server can "
    "do. Bad answers per second stand where there are any."
)
_OVERLOAD = (
    "Of {asked_per_s:,.0f} requests per second, made by hey at up to four times the rate of 8 clients "
    "({usual_per_s:,.0f}), {answered_per_s:,.0f} are answered (p99 {answered_p99_ms:.0f} ms), {others:.0f} fail, and "
    "the others are refused with 503 in {refused_p50_ms:.1f} ms (p99 {refused_p99_ms:.0f} ms)."
)


def serving_section(found: Serving) -> str:
    titles = ["server", "what", "clients", "requests per second", "p50 ms", "p95 ms", "p99 ms"]
    keys = list(dict.fromkeys((one.server, one.what, one.clients) for one in found.loads))
    rows = [_row(*key, [one for one in found.loads if (one.server, one.what, one.clients) == key]) for key in keys]
    rounds = len({one.round for one in found.loads})
    words = [_OVERLOAD.format(**found.overload)]
    if found.soak is not None:
        words.append(
            f"Memory of the service after a minute of load: {found.soak['before_mib']:.0f} MiB; after "
            f"{found.soak['seconds']:.0f} s more: {found.soak['after_mib']:.0f} MiB."
        )
    return "\n\n".join(
        [
            _TITLE,
            machine_line(found.machine),
            f"```\n{found.command}\n```",
            _NOTE.format(model=found.model, rounds=rounds),
            markdown_table(titles, rows),
            " ".join(words),
        ]
    )


def _row(server: str, what: str, clients: int, loads: list[ServingLoad]) -> list[str]:
    rates = [one.per_s - one.bad_per_s for one in loads]
    bad = statistics.median(one.bad_per_s for one in loads)
    shown = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
    times = [statistics.median(getattr(one, name) for one in loads) for name in ("p50_ms", "p95_ms", "p99_ms")]
    return [
        server,
        what,
        str(clients),
        shown + (f", bad {bad:,.0f}" if bad else ""),
        *(f"{time:.1f}" for time in times),
    ]
