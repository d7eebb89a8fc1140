"""Settings of the allocators and of OpenMP that make training on a CPU fast, for one process."""

import ctypes
import os
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_SPIN_COUNT = "10000"


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, for this process; return whether it did.

    By default every activation above 32 MB is mapped, zeroed and unmapped again at each step, which
    costs a 60-way episode up to half of its time on a CPU. The process's memory stays at its peak.
    Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def cpu_name() -> str:
    """The processor's own name where Linux gives it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def prepare_environment() -> None:
    """Set what GNU OpenMP and Arrow read when they are loaded. Call before torch is imported; values that are set stay.

    GNU OpenMP spins for milliseconds by default: where another process takes one of the cores, a step
    is several times slower than its work. Arrow's own allocator keeps 15 MB more than the system's.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
