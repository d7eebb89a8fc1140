"""How the process of a run that computes is set up. Where a run runs does not change what it learns."""

import os
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.backbones.layers.native import native_compiler, use_native_kernels
from kshot.backbones.layers.recompute import use_recomputation
from kshot.runtime.cpu import keep_freed_memory
from kshot.settings import STRICT

WITHOUT_KERNELS = "KSHOT_WITHOUT_KERNELS"  # set: torch alone, whatever params.yaml says, as a rerun may need it
CPU, CPU_WITH_KERNELS = "cpu", "cpu with native kernels"


@settings(frozen=True, kw_only=True, config=STRICT)
class ProcessSettings:
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = "auto"
    n_processes: Annotated[int, Field(ge=1)] = 1  # of a training, on each host
    n_hosts: Annotated[int, Field(ge=1)] = 1  # of a training; each runs the same command
    keep_freed_memory: bool = True  # glibc: do not give freed memory back between steps
    check_memory: bool = True  # of a training step, before the first
    recompute: bool = False  # activations of a backbone's blocks again in the backward pass: less memory, more time
    force_precision: bool = False  # bfloat16 also where no instructions of the processor carry it
    native_kernels: bool = True  # where `kshot kernels` has built them; else, and where there are none, torch alone


def set_up_process(settings: ProcessSettings) -> None:
    if settings.keep_freed_memory:
        keep_freed_memory()
    use_recomputation(settings.recompute)
    use_native_kernels(settings.native_kernels and WITHOUT_KERNELS not in os.environ)


def device_name(device: torch.device) -> str:
    """What computes, as far as the bits of the weights depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    compiler = native_compiler()
    return f"{CPU_WITH_KERNELS} by {compiler}" if compiler else CPU
