"""The section of the report on memory: what a training says it needs, and what it takes."""

from bench.results import Memory, MemoryUse
from bench.tables import machine_line, markdown_table

_TITLE = "## Memory of a step, said before and measured"
_NOTE = (
    "`kshot stage meta_train` in one process, from random weights. Before its first step it says what a step needs; "
    "that and what it holds at that moment are compared with the most that it has held when it ends, after "
    "{n_steps} steps and a validation of two episodes. The goal is within 25%."
)


def memory_section(memory: Memory) -> str:
    titles = ["GiB", "held before", "said to be needed", "together", "measured peak", "together / peak"]
    return "\n\n".join(
        [
            _TITLE,
            machine_line(memory.machine),
            f"```\n{memory.command}\n```",
            _NOTE.format(n_steps=memory.n_steps),
            markdown_table(titles, [_row(use) for use in memory.uses]),
        ]
    )


def _row(use: MemoryUse) -> list[str]:
    sizes = (use.held, use.needed, use.predicted, use.peak)
    return [use.title, *(f"{size / 2**30:.2f}" for size in sizes), f"{use.predicted / use.peak:.2f}"]
