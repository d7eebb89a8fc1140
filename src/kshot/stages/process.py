"""How the process of a stage that runs a network is set up."""

import os

from kshot.backbones.layers.native import use_native_kernels
from kshot.config import MetaTrainSettings
from kshot.runtime.cpu import keep_freed_memory

WITHOUT_KERNELS = "KSHOT_WITHOUT_KERNELS"  # set: torch alone, whatever params.yaml says, as a rerun may need it


def set_up_process(settings: MetaTrainSettings) -> None:
    if settings.keep_freed_memory:
        keep_freed_memory()
    use_native_kernels(settings.native_kernels and WITHOUT_KERNELS not in os.environ)
