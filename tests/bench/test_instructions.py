"""Each set of instructions in a process of its own: torch and oneDNN look theirs up once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from bench.instructions import HELD

HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
HAS_AVX2 = HAS_AVX512 or torch.backends.cpu.get_cpu_capability() == "AVX2"

PROGRAM = """
import json, sys
from bench.instructions import hold
found = hold(sys.argv[1] or None)
import torch
from kshot.backbones import Conv4Config
from kshot.backbones.layers.native import build_native, use_native_kernels
from kshot.data.items import ImageKind
library = build_native()
assert use_native_kernels()
torch.manual_seed(0)
net = Conv4Config(width=24).build(ImageKind(image_size=31, channels=1))
loss = net(torch.rand(17, 1, 31, 31), 17).square().mean()
gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
print(json.dumps({"found": found, "library": str(library), "gradients": gradients.tolist()}))
"""


def held(instructions: str) -> dict[str, object]:
    free = {name: value for name, value in os.environ.items() if name not in HELD["avx2"]}
    command = [sys.executable, "-c", PROGRAM, instructions]
    done = subprocess.run(command, env=free, capture_output=True, text=True, check=True)
    made: dict[str, object] = json.loads(done.stdout)
    return made


@pytest.mark.skipif(not HAS_AVX2 or shutil.which("c++") is None, reason="no AVX2 or no C++ compiler")
def test_kernels_held_to_avx2_are_built_without_newer_instructions_and_give_equal_results() -> None:
    avx2, free = held("avx2"), held("")
    assert avx2["found"] == "avx2"
    assert (avx2["library"] != free["library"]) is HAS_AVX512
    found, expected = (torch.tensor(one["gradients"]) for one in (avx2, free))
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    if objdump := shutil.which("objdump"):

        def code(library: object) -> str:
            return subprocess.run([objdump, "-d", str(library)], capture_output=True, text=True, check=True).stdout

        assert "zmm" not in code(avx2["library"])
        assert "ymm" in code(avx2["library"])
        assert ("zmm" in code(free["library"])) is HAS_AVX512


@pytest.mark.skipif(not HAS_AVX2, reason="no AVX2")
def test_onednn_and_aten_use_nothing_newer_than_what_they_are_held_to() -> None:
    program = (
        "from bench.instructions import hold; hold('avx2'); import torch; from torch.nn import functional as F\n"
        "with torch.backends.mkldnn.verbose(1): F.conv2d(torch.rand(4, 16, 9, 9), torch.rand(16, 16, 3, 3))\n"
        "print(torch.__config__.show())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    primitives = [line for line in done.stdout.splitlines() if line.startswith("onednn_verbose")]
    assert any("convolution,jit:avx2" in line for line in primitives)
    assert not any("avx512" in line for line in primitives)
    assert "CPU capability usage: AVX2" in done.stdout


def test_instructions_that_the_processor_has_not_are_refused() -> None:
    program = "import sys; from bench.instructions import hold; hold('avx2')"
    lower = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    asked_before = f"import torch; torch.backends.cpu.get_cpu_capability(); {program}"
    done = subprocess.run([sys.executable, "-c", asked_before], env=lower, capture_output=True, text=True, check=False)
    assert "found default instructions; need avx2; next: leave --isa out" in done.stderr
