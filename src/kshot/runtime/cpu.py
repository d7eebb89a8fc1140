"""What torch's training loop on a CPU wants to know of the processor and to set, for one process."""

import ctypes
import math
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from kshot.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_SPIN_COUNT = "10000"

_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS, _CGROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

_OLDER = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
_WITHOUT_AMX = {"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", "AVX10_2_512"}
_ATEN = {"ATEN_CPU_CAPABILITY": {"DEFAULT", "AVX2"}}
_BFLOAT16 = {  # flags of /proc/cpuinfo; the values of a user's limits with which torch leaves the instructions alone
    "amx_bf16": {"ONEDNN_MAX_CPU_ISA": _OLDER | _WITHOUT_AMX, "DNNL_MAX_CPU_ISA": _OLDER | _WITHOUT_AMX} | _ATEN,
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": _OLDER, "DNNL_MAX_CPU_ISA": _OLDER} | _ATEN,
    "bf16": {},  # ARM's
}


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


def release_freed_memory() -> None:
    """Give the system what this process has freed and kept; what is used next is mapped anew. glibc only."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def cpu_name() -> str:
    """The processor's own name where Linux shows it, else its architecture."""
    return _cpu_name(_read(_CPUINFO))


def usable_cores(cgroups: Path = _CGROUPS, of_process: Path = _CGROUPS_OF_PROCESS) -> int:
    """How many cores this process may keep busy: at most those it is bound to, and those that its container may use.

    `cgroups` is where control groups are mounted, `of_process` lists those of this process. A quota of one and
    a half cores counts as two.
    """
    return max(1, min([_bound_cores(), *map(math.ceil, _quotas(cgroups, _read(of_process)))]))


def check_bfloat16(
    *, forced: bool = False, cpuinfo: str | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """A line for the log: which of the processor's instructions carry bfloat16 in torch.

    `cpuinfo` is the text of /proc/cpuinfo. Raises ConfigError where there are none or `environment` holds torch to
    older ones, unless forced.
    """
    text = _read(_CPUINFO) if cpuinfo is None else cpuinfo
    flags = {flag for line in (*_values(text, "flags"), *_values(text, "Features")) for flag in line.split()}
    there = [flag for flag in _BFLOAT16 if flag in flags]
    limits = {flag: _limits(flag, environment) for flag in there}
    carrying = [flag for flag in there if not limits[flag]]
    if carrying:
        return f"bfloat16: carried by {' and '.join(carrying)}"
    if forced:
        return "bfloat16: no instructions of this processor carry it; expect several times the time of float32"
    held = sorted({limit for flag in there for limit in limits[flag]})
    found = f"{' and '.join(there)}, held back by {' and '.join(held)}," if there else "no instructions for it"
    raise ConfigError(
        f"meta_train.training.precision is bfloat16; found {found} on this processor ({_cpu_name(text)}), which would "
        f"take several times as long as in float32; need {', '.join(_BFLOAT16)}; next: set precision to float32, or "
        "process.force_precision to true"
    )


def prepare_environment() -> None:
    """Set what GNU OpenMP and Arrow read when they are loaded. Call before torch is imported; values that are set stay.

    GNU OpenMP spins for milliseconds by default: where another process takes one of the cores, a step
    is several times slower than its work. It knows the cores that a process is bound to and not the quota of a
    container. Arrow's own allocator keeps 15 MB more than the system's.
    """
    if (cores := usable_cores()) < _bound_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def _read(path: Path) -> str:
    """The text of a file of the kernel's; empty where there is none, as on another system."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _cpu_name(cpuinfo: str) -> str:
    names = _values(cpuinfo, "model name")
    return names[0] if names else platform.machine()


def _bound_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _values(cpuinfo: str, name: str) -> list[str]:
    """What stands behind `name:`, once for each core."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _limits(flag: str, environment: Mapping[str, str]) -> list[str]:
    """The settings of this environment that keep torch from the instructions of a flag."""
    values = {name: environment.get(name, "") for name in _BFLOAT16[flag]}
    return [f"{name}={value}" for name, value in values.items() if value.upper() in _BFLOAT16[flag][name]]


def _quotas(cgroups: Path, of_process: str) -> Iterator[float]:
    """How many cores each control group of the process, and each above it, may use; none from a group without a limit.

    A line of `of_process` is number:controllers:path. In a container the path may be the host's, which is not
    mounted there; the container's own limit then stands at the top of the mount.
    """
    for line in of_process.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree for all
            for group in _with_parents(cgroups, path):
                quota, _, period_us = _read(group / "cpu.max").partition(" ")
                yield from _cores(quota, period_us)
        elif "cpu" in controllers.split(","):
            for mount in {cgroups / controllers, cgroups / "cpu"}:
                for group in _with_parents(mount, path):
                    yield from _cores(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    group = mount / path.lstrip("/")
    yield group
    yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def _cores(quota_us: str, period_us: str) -> Iterator[float]:
    """Nothing where the quota is empty, "max" or -1."""
    if quota_us.strip().isdigit():
        yield int(quota_us) / int(period_us)
