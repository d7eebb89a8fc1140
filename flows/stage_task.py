"""One DVC stage as a Prefect task, tried again after transient faults; and how a task or flow ends."""

from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed

from kshot.errors import KshotError, StageError, TransientStageError
from kshot.printing import one_line
from kshot.project.dvc import StageRun, run_stage
from kshot.project.run_folder import shares_cache

RETRY_DELAYS_S = [1.0, 10.0]
T = TypeVar("T")


def is_transient(_task: Any, _task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, TransientStageError)


def run_as_task(stage: str, root: Path, *, is_unchanged: bool = False) -> StageRun:
    """`run_stage` as a Prefect task of the stage's name, tried again after transient faults.

    DVC is not started for a stage that `is_unchanged`.
    """
    named = stage_task.with_options(name=stage, task_run_name=stage)
    return named(stage, root, is_unchanged=is_unchanged, return_state=True).result()


@task(
    cache_policy=NO_CACHE,  # DVC knows what is stale
    persist_result=False,
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_transient,
)
def stage_task(stage: str, root: Path, *, is_unchanged: bool) -> StageRun:
    """`run_stage` as a task, with `ran` or `cached` in the message of its state."""
    if is_unchanged:
        return completed("cached", StageRun(stage=stage, outcome="cached", seconds=0.0))
    try:
        done = run_stage(stage, root, get_run_logger().info, may_pull=shares_cache())
    except StageError as error:
        return failed(error, StageRun)
    return completed(done.outcome, done)


def completed(message: str, result: T) -> T:
    """What a task or flow returns to choose its state's message; `return_state=True` and `result()` give the result."""
    return cast(T, Completed(message=message, data=result))


def failed(error: KshotError, result: type[T]) -> T:
    """What a task or flow returns for an error that needs no trace: Prefect logs the trace of a raised one."""
    return cast(T, Failed(message=one_line(str(error)), data=error))
