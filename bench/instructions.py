"""Holding everything that computes to an older set of instructions than the processor has.

By variables that oneDNN, ATen and MKL read; kshot's native kernels follow ATen, with a library for each set. NumPy and
the C library, which neither multiply nor convolve here, stay free.
"""

import os

HELD = {"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
SHOWN = {"avx512": "AVX-512", "avx2": "AVX2"}  # in reports; these first, in this order


def hold(instructions: str | None) -> str:
    """Hold this process and those that it starts to the set, None for all that the processor has; the name of the set.

    Call before anything asks torch for its capability, which it looks up once. Raises ValueError where torch does
    not find these instructions.
    """
    os.environ.update(HELD[instructions] if instructions else {})
    import torch

    found = torch.backends.cpu.get_cpu_capability().lower()
    if instructions not in (None, found):
        raise ValueError(f"found {found} instructions; need {instructions}; next: leave --isa out")
    return found
