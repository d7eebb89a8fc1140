"""`kshot ...`: the table of the commands, and how an error ends one.

Settings of a run live in params.yaml alone; the options here say which files to use. The heavy
packages are imported by the commands that need them.
"""

import errno
import sys
from traceback import format_exception
from types import TracebackType
from typing import Annotated

import typer

from kshot.cli import curate, data, difficulty, gallery, learners, machine, monitor, registry, service, stages, weights
from kshot.cli.output import warn
from kshot.errors import KshotError
from kshot.printing import escape_missing_letters, one_line
from kshot.runtime.error_file import leave_error

_COMMANDS = (
    data.ingest,
    data.unite,
    data.announce,
    difficulty.difficulty,
    data.preset,
    learners.algorithms,
    stages.stage,
    stages.validate,
    stages.pool,
    stages.train,
    stages.evaluate,
    stages.cross_domain,
    registry.register,
    registry.promote,
    registry.rollback,
    registry.history,
    registry.compare,
    registry.report,
    registry.predict,
    service.serve,
    service.serve_key,
    monitor.monitor,
    registry.export,
    machine.doctor,
    machine.kernels,
)

_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)

app = typer.Typer(
    help="Few-shot meta-learning: from a dataset to a registered model. Settings: params.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(curate.app, name="curate")
app.add_typer(weights.app, name="weights")
app.add_typer(gallery.app, name="gallery")
_debug = False


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False) -> None:
    global _debug
    _debug = debug


def main() -> None:
    """Run the command that the arguments name. Every error is also left for the process that started this one."""
    for stream in (sys.stdout, sys.stderr):
        escape_missing_letters(stream)
    sys.excepthook = _show_trace
    try:
        app(standalone_mode=True)
    except KshotError as error:
        leave_error(error)
        if _debug:
            raise
        warn(f"error: {one_line(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        leave_error(error)
        if _debug or error.errno not in _OF_STORAGE:
            raise
        warn(
            f"error: {one_line(str(error.filename or 'a file'))} cannot be written ({error.strerror}); need a disk "
            "that takes it; next: mend that, then the same command"
        )
        sys.exit(1)
    except Exception as error:
        leave_error(error)
        raise


def _show_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for line in "".join(format_exception(kind, error, trace)).rstrip("\n").split("\n"):
        warn(line)
