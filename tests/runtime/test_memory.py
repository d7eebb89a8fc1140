"""Free memory, from files as the kernel writes them."""

from pathlib import Path

import torch

from kshot.runtime.memory import free_bytes

CPU = torch.device("cpu")


def test_the_container_bounds_what_the_system_has(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:       4000 kB\nHugePages_Total:       0\n")
    assert free_bytes(CPU, meminfo, tmp_path) == 4000 * 1024
    for name, text in (("memory.max", "3000\n"), ("memory.current", "1000\n"), ("memory.stat", "inactive_file 50\n")):
        (tmp_path / name).write_text(text)
    assert free_bytes(CPU, meminfo, tmp_path) == 2050
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU, meminfo, tmp_path) == 4000 * 1024


def test_a_system_that_does_not_say_is_none(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path / "none", tmp_path) is None
