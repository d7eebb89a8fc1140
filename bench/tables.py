"""What the tables of the report are made of."""

from collections.abc import Sequence

from bench.results import Machine


def machine_line(machine: Machine) -> str:
    return (
        f"Measured on {machine.date}: {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, "
        f"{machine.system}, Python {machine.python}, torch {machine.torch}."
    )


def rounded(value: float) -> str:
    """Three significant figures, with thousands separators."""
    return f"{float(f'{value:.3g}'):,.10g}"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; empty without rows."""
    if not rows:
        return ""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
