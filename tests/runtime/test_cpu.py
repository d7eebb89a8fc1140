import os
from pathlib import Path

import pytest

from kshot.errors import ConfigError
from kshot.runtime import cpu
from kshot.runtime.cpu import check_bfloat16, prepare_environment, usable_cores

SAPPHIRE = "model name\t: Xeon 8481C\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
GENOA = "processor\t: 0\nmodel name\t: EPYC 9B14\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
ROME = "model name\t: EPYC 7B12\nflags\t\t: fpu avx2 sha_ni\n\nprocessor\t: 1\nmodel name\t: EPYC 7B12\n"
SKYLAKE = "model name\t: Xeon Gold\nflags\t\t: fpu avx2 avx512f avx512_vnni\nbugs\t\t: avx512_bf16\n"
NEOVERSE_V1 = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve bf16 i8mm\n"
NEOVERSE_N1 = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("cpuinfo", "environment", "names"),
    [
        (SAPPHIRE, {}, "amx_bf16 and avx512_bf16"),
        (SAPPHIRE, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "avx512_bf16"),
        (SAPPHIRE, {"ONEDNN_MAX_CPU_ISA": "avx512_core_amx"}, "amx_bf16 and avx512_bf16"),
        (GENOA, {}, "avx512_bf16"),
        (GENOA, {"ONEDNN_MAX_CPU_ISA": "DEFAULT", "ATEN_CPU_CAPABILITY": "avx512"}, "avx512_bf16"),
        (NEOVERSE_V1, {"ATEN_CPU_CAPABILITY": "default"}, "bf16"),
    ],
)
def test_the_line_names_the_instructions_that_carry_bfloat16(
    cpuinfo: str, environment: dict[str, str], names: str
) -> None:
    assert check_bfloat16(cpuinfo=cpuinfo, environment=environment) == f"bfloat16: carried by {names}"


@pytest.mark.parametrize("cpuinfo", [ROME, SKYLAKE, NEOVERSE_N1, ""])
def test_bfloat16_without_instructions_is_refused_unless_forced(cpuinfo: str) -> None:
    with pytest.raises(ConfigError, match=r"found no instructions for it .*need amx_bf16, avx512_bf16, bf16; next: "):
        check_bfloat16(cpuinfo=cpuinfo, environment={})
    assert "several times the time of float32" in check_bfloat16(forced=True, cpuinfo=cpuinfo, environment={})


def test_the_refusal_names_the_processor() -> None:
    with pytest.raises(ConfigError, match=r"\(EPYC 7B12\)"):
        check_bfloat16(cpuinfo=ROME, environment={})


@pytest.mark.parametrize(
    ("name", "value"),
    [("ONEDNN_MAX_CPU_ISA", "avx2"), ("DNNL_MAX_CPU_ISA", "AVX512_CORE"), ("ATEN_CPU_CAPABILITY", "avx2")],
)
def test_instructions_that_the_user_holds_torch_back_from_do_not_count(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"found amx_bf16 and avx512_bf16, held back by {name}={value}, on this"):
        check_bfloat16(cpuinfo=SAPPHIRE, environment={name: value})


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def files(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


VERSION_1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/x\n1:name=systemd:/\n0::/\n"


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("of_process", "texts", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 16),
        ("0::/a/b\n", {"cpu.max": "800000 100000\n", "a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/of/the/host\n", {"cpu.max": "500000 100000\n"}, 5),
        (VERSION_1, {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "-1\n"}, 16),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "25000\n"}, 2),
        (
            VERSION_1,
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "700000\n",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
                "cpu.max": "100000 100000\n",
            },
            1,
        ),
        ("", {}, 16),
    ],
)
def test_usable_cores_are_those_that_no_control_group_takes_away(
    tmp_path: Path, of_process: str, texts: dict[str, str], cores: int
) -> None:
    listed = files(tmp_path, {"self": of_process}) / "self"
    assert usable_cores(files(tmp_path / "mount", texts), listed) == cores


def test_a_process_that_is_bound_to_one_core_may_use_one(tmp_path: Path) -> None:
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert usable_cores(tmp_path, tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, all_of_them)


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("cores", "threads"), [(2, "2"), (16, None)])
def test_openmp_gets_as_many_threads_as_a_quota_has_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "ARROW_DEFAULT_MEMORY_POOL", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is as it was after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(cpu, "usable_cores", lambda: cores)
    prepare_environment()
    assert os.environ.get("OMP_NUM_THREADS") == threads
