"""How much memory is free for this process."""

from collections.abc import Iterator
from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Of the device, for new tensors; None where the system does not say.

    In main memory that is what the system calls available, and at most what the container has left, where `cgroup` is
    the control group (version 2) that limits it. Its cache of files counts as free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        available = _fields(meminfo)["MemAvailable:"]
    except (OSError, KeyError):
        return None
    return min([available * 1024, *_left_in_container(cgroup)])


def _left_in_container(cgroup: Path) -> Iterator[int]:
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = _fields(cgroup / "memory.stat").get("inactive_file", 0)
    except OSError:
        return
    if limit.isdigit():
        yield max(0, int(limit) - int(used) + cache)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel's, by what stands before each in its line."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
