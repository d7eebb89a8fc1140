"""The process that measures kshot or a floor, set up as kshot's train and evaluate stages set theirs up."""

import sys

from bench.measure import Request, serve
from kshot.errors import ConfigError
from kshot.runtime.cpu import check_bfloat16, keep_freed_memory, prepare_environment


def main() -> None:
    request = Request.from_json(sys.argv[1])
    workload = request.workload
    if workload.name != "floor-plain":  # which keeps every default
        prepare_environment()
        keep_freed_memory()
    # imported now: torch and Arrow read the environment when they are loaded
    if workload.kind == "floor":
        from bench.drivers import floor_steps

        serve(floor_steps.prepare)
    else:
        if request.precision == "bfloat16":
            refuse_slow_bfloat16()
        from bench.drivers import kshot_steps
        from kshot.backbones.layers.native import use_native_kernels

        if use_native_kernels(request.native_kernels) is not request.native_kernels:
            sys.exit("error: the native kernels are not built; next: kshot kernels")
        with kshot_steps.prepared() as prepare:
            serve(prepare)


def refuse_slow_bfloat16() -> None:
    """As the stage that trains does."""
    try:
        check_bfloat16()
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
