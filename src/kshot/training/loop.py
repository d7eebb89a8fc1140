"""The outer loop of every training, in one place. Knows no MLflow, Prefect or DVC.

Every number that a step needs is a function of the step and of what a checkpoint holds, so a run that
was killed and resumed goes on exactly as one that was not.
"""

import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.backbones.contract import layer_name
from kshot.backbones.layers.recompute import recomputation, uses_recomputation
from kshot.errors import TrainingError
from kshot.runtime.cpu import release_freed_memory
from kshot.runtime.lines import LiveLines
from kshot.runtime.memory import free_bytes
from kshot.runtime.workers import PairwiseSum, Workers, is_spread_over_hosts, local_world_size
from kshot.settings import STRICT
from kshot.training.objectives import Objective
from kshot.training.optimizers import AdamConfig, Optimizer, OptimizerConfig, cosine_decay, flat, layer_rates

_STEPS_QUEUED = 16  # on a GPU, which runs behind the host
_OF_PARAMETERS = 8  # vectors of all parameters: gradients, moments, the best weights and sums
_WORTH_IT = 0.9  # of the memory of a step, or less: what a setting that takes time has to come to

Tensors = dict[str, Tensor]


@settings(frozen=True, kw_only=True, config=STRICT)
class TrainingSettings:
    """`n_steps` of `episodes_per_step` episodes or batches; the best weights on meta_val are kept."""

    n_steps: Annotated[int, Field(ge=0)]  # 0: the backbone stays as it is given
    episodes_per_step: Annotated[int, Field(ge=1)] = 1
    optimizer: OptimizerConfig = Field(default_factory=AdamConfig)
    outer_lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["constant", "halving", "cosine", "linear"] = "constant"
    halve_every: Annotated[int, Field(ge=1)] = 2000  # steps, for the halving schedule
    validate_every: Annotated[int, Field(ge=1)] = 200  # steps
    patience: Annotated[int, Field(ge=1)] = 10  # validations in a row without a better accuracy
    batch_size: Annotated[int, Field(ge=1)] = 128  # items, for a learner that is trained on batches, not on episodes
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0

    def learning_rate(self, step: int) -> float:
        match self.schedule:
            case "constant":
                return self.outer_lr
            case "halving":
                return self.outer_lr * 0.5 ** (step // self.halve_every)
            case "cosine":
                return self.outer_lr * cosine_decay(step, self.n_steps)
            case "linear":
                return self.outer_lr * (1 - step / self.n_steps)


@dataclass(frozen=True, kw_only=True)
class ValidationPoint:
    """What was known when the weights after `step` steps were validated."""

    step: int
    loss: float  # mean over the steps since the point before; not a number before the first step
    learning_rate: float
    val_accuracy: float  # fraction, mean over the frozen meta_val episodes


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the training has come, without its tensors."""

    step: int = 0
    loss_sum: float = 0.0  # over the steps since the last validation
    seconds: float = 0.0  # of training, without validation, also before a resume
    best_accuracy: float = -1.0
    validations_since_best: int = 0
    history: tuple[ValidationPoint, ...] = ()

    @property
    def steps_since_validation(self) -> int:
        return self.step - (self.history[-1].step if self.history else 0)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that the next step needs, and the best weights so far, whose names begin with the step of each."""

    progress: Progress
    weights: Tensors
    optimizer: Tensors
    best_weights: Tensors


class CheckpointStore(Protocol):
    def latest(self) -> TrainingState | None:
        """The newest intact state, or None before the first save."""
        ...

    def save(self, state: TrainingState) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to minimise, how, and where checkpoints go."""

    objective: Objective
    settings: TrainingSettings
    checkpoints: CheckpointStore
    workers: Workers = field(default_factory=Workers)
    lines: LiveLines = field(default_factory=lambda: LiveLines(print))
    check_memory: bool = False
    keep_best: int = 1
    """How many validations' weights to keep."""

    @property
    def device(self) -> torch.device:
        return next(self.objective.module.parameters()).device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained. A frozen one stays as it is."""
        return [parameter for parameter in self.objective.module.parameters() if parameter.requires_grad]

    def new_optimizer(self) -> Optimizer:
        """Raises ConfigError where its settings name a layer that is not trained."""
        settings, module = self.settings.optimizer, self.objective.module
        names = [layer_name(name) for name, parameter in module.named_parameters() if parameter.requires_grad]
        return Optimizer(self.parameters, settings, layer_rates(names, self.parameters, settings.layer_rates))


def run_training(job: TrainingJob) -> Progress:
    """Train the objective's module in place and leave it with the weights that scored best.

    Raises TrainingError on a loss or gradient that is not finite.
    """
    progress, best = train_and_keep(job)
    job.objective.module.load_state_dict(best[0])
    return progress


def train_and_keep(job: TrainingJob) -> tuple[Progress, Sequence[Tensors]]:
    """Train the objective's module in place, and give the weights of its `keep_best` best validations, the best first.

    Each step: the losses of this step's numbers -> their gradient, summed over workers -> the optimiser.
    Every worker takes the same numbers and learns from its share of them, so the weights are the same on all.
    Raises TrainingError on a loss or gradient that is not finite.
    """
    settings, workers, module = job.settings, job.workers, job.objective.module
    if settings.n_steps == 0:
        return _without_steps(job), [_copy(module.state_dict())]
    if not job.parameters:
        raise TrainingError(
            "found no parameter that requires gradients; need at least one; next: freeze less, or set n_steps: 0"
        )
    optimizer = job.new_optimizer()
    _check_memory(job)
    progress, kept = _resume(job, optimizer)
    saved_step = progress.step
    last_save = time.monotonic()

    while progress.step < settings.n_steps and progress.validations_since_best < settings.patience:
        started = time.monotonic()
        steps = range(progress.step, progress.step + _steps_until_a_look(job, progress))
        outcomes = [training_step(job, optimizer, step) for step in steps]
        losses = _checked_losses(outcomes, steps)
        now = time.monotonic()
        progress = replace(
            progress,
            step=steps.stop,
            loss_sum=progress.loss_sum + sum(losses),
            seconds=progress.seconds + now - started,
        )

        if progress.step % settings.validate_every == 0 or progress.step == settings.n_steps:
            release_freed_memory()  # blocks of the steps' sizes, which a validation cannot use
            with optimizer.averaged():
                progress = _after_validation(progress, settings, job.objective.score(workers, job.lines))
                kept = _best_of(kept | {progress.step: _copy(module.state_dict())}, progress, job)
            job.lines.log(_validation_line(progress, job))
        job.lines.log_sparingly(partial(_step_line, progress, job))
        if workers.is_first and now - last_save >= settings.checkpoint_every_s:
            job.checkpoints.save(_state(module, optimizer, progress, kept))
            saved_step, last_save = progress.step, time.monotonic()

    if workers.is_first and progress.step != saved_step:
        job.checkpoints.save(_state(module, optimizer, progress, kept))
    return progress, list(_best_of(kept, progress, job).values())


def _check_memory(job: TrainingJob) -> None:
    """Say what a step will need, and raise TrainingError where it is not there."""
    free = free_bytes(job.device) if job.check_memory else None
    if free is None:
        return
    job.objective.module.train()
    needed = _needed_bytes(job)
    release_freed_memory()  # of the counting, which took problems of other sizes than the steps do
    n_here = local_world_size() if job.device.type == "cpu" else 1
    line = f"a step needs about {_size(needed)} of memory" + (f" in each of {n_here} processes" * (n_here > 1))
    too_much = torch.tensor(int(needed * n_here > free), device=job.device)
    if int(job.workers.sum(too_much)):  # for any worker: nobody is to wait for one that left
        raise TrainingError(
            f"{line}; {_size(free)} are free; next: set {_recomputation_would_do(job, needed)}fewer classes or queries "
            "in task_pool.meta_train.shape (or a smaller batch_size), a smaller backbone or part of it in "
            "backbone.freeze, fewer processes, or process.check_memory: false to try all the same"
        )
    job.lines.log(f"{line}, {_size(free)} are free")


def _needed_bytes(job: TrainingJob) -> int:
    """About what a step of this worker needs; measured in `bench/memory.py`."""
    share = len(job.workers.share(range(job.settings.episodes_per_step)))
    of_parameters = sum(parameter.numel() * parameter.element_size() for parameter in job.parameters)
    together = max(1, min(job.objective.at_once, share))
    return job.objective.needed_bytes(together) + _OF_PARAMETERS * of_parameters


def _recomputation_would_do(job: TrainingJob, needed: int) -> str:
    """Words for an error: the setting and what a step would need with it; none where it would help little."""
    if uses_recomputation():
        return ""
    with recomputation(True):
        less = _needed_bytes(job)
    return f"process.recompute: true (then about {_size(less)}), " if less < _WORTH_IT * needed else ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.1f} GiB"


def _without_steps(job: TrainingJob) -> Progress:
    """The module is scored as it is, which sets its population statistics too."""
    accuracy = job.objective.score(job.workers, job.lines)
    job.lines.log(f"no step of training  meta_val accuracy {accuracy:.2%}")
    point = ValidationPoint(step=0, loss=math.nan, learning_rate=0.0, val_accuracy=accuracy)
    return Progress(best_accuracy=accuracy, history=(point,))


def training_step(job: TrainingJob, optimizer: Optimizer, step: int) -> Tensor:
    """One step of the outer loop, number `step` from 0: losses, gradients, their sum over workers, update.

    Returns the mean loss over the step's numbers and the norm of its gradient, (2,) on the module's device.
    """
    first = step * job.settings.episodes_per_step
    numbers = range(first, first + job.settings.episodes_per_step)
    return update(job, optimizer, step, gradient_and_loss(job, step, job.workers.share(numbers)))


def update(job: TrainingJob, optimizer: Optimizer, step: int, of_worker: Tensor) -> Tensor:
    """The second half of `training_step`, from what `gradient_and_loss` gave each worker."""
    total = job.workers.sum(of_worker)
    gradient, loss = total[:-1], total[-1]
    optimizer.step(gradient, job.settings.learning_rate(step))
    return torch.stack([loss, torch.linalg.vector_norm(gradient)])


def gradient_and_loss(job: TrainingJob, step: int, numbers: range) -> Tensor:
    """This worker's part of the gradient of the mean loss over the step's numbers, `flat`, and of that loss, last.

    A few numbers at a time, so that memory does not grow with how many there are.
    """
    parameters, objective = job.parameters, job.objective
    objective.module.train()
    total = PairwiseSum()
    if not len(numbers):  # more workers than numbers
        total.add(torch.zeros(sum(p.numel() for p in parameters) + 1, device=job.device, dtype=parameters[0].dtype))
    done = step / job.settings.n_steps
    for start in range(0, len(numbers), objective.at_once):
        with torch.autocast(job.device.type, dtype=torch.bfloat16, enabled=job.settings.precision == "bfloat16"):
            losses = objective.losses(numbers[start : start + objective.at_once], done)
            loss = losses.sum() / job.settings.episodes_per_step
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        total.add(flat([*gradients, loss.detach()]))
    return total.result()


def _steps_until_a_look(job: TrainingJob, progress: Progress) -> int:
    """Steps to queue before reading their losses back; never beyond the next validation."""
    if job.device.type == "cpu":
        return 1
    every = job.settings.validate_every
    return min(_STEPS_QUEUED, every - progress.step % every, job.settings.n_steps - progress.step)


def _checked_losses(outcomes: list[Tensor], steps: range) -> list[float]:
    losses = []
    for step, (loss, norm) in zip(steps, torch.stack(outcomes).tolist(), strict=True):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; need finite numbers; "
                "next: lower meta_train.training.outer_lr (or the algorithm's inner_lr, or pretrain.learning_rate) "
                "in params.yaml and run again"
            )
        losses.append(loss)
    return losses


def _after_validation(progress: Progress, settings: TrainingSettings, accuracy: float) -> Progress:
    steps = progress.steps_since_validation
    point = ValidationPoint(
        step=progress.step,
        loss=progress.loss_sum / steps,
        learning_rate=settings.learning_rate(progress.step - 1),
        val_accuracy=accuracy,
    )
    better = accuracy > progress.best_accuracy
    return Progress(
        step=progress.step,
        seconds=progress.seconds,
        best_accuracy=max(accuracy, progress.best_accuracy),
        validations_since_best=0 if better else progress.validations_since_best + 1,
        history=(*progress.history, point),
    )


def episodes_per_s(progress: Progress, settings: TrainingSettings) -> float:
    """Throughput of the training steps, all workers together; batches per second for an objective that has batches."""
    return progress.step * settings.episodes_per_step / max(progress.seconds, 1e-9)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held: on the GPU where it has one, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _step_line(progress: Progress, job: TrainingJob) -> str:
    settings = job.settings
    rate = episodes_per_s(progress, settings)
    left_s = (settings.n_steps - progress.step) * settings.episodes_per_step / rate
    validated = f"meta_val {progress.history[-1].val_accuracy:.2%}  " if progress.history else ""
    return (
        f"step {progress.step:,}/{settings.n_steps:,}  "
        f"loss {progress.loss_sum / max(progress.steps_since_validation, 1):.4f}  {validated}"
        f"{rate:.1f} {job.objective.unit}/s  at most {timedelta(seconds=round(left_s))} left  "
        f"{peak_memory_bytes(job.device) / 2**30:.2f} GiB"
    )


def _validation_line(progress: Progress, job: TrainingJob) -> str:
    point, settings = progress.history[-1], job.settings
    return (
        f"step {point.step:,}/{settings.n_steps:,}  loss {point.loss:.4f}  "
        f"meta_val accuracy {point.val_accuracy:.2%}, best {progress.best_accuracy:.2%}  "
        f"{episodes_per_s(progress, settings):.1f} {job.objective.unit}/s"
    )


def _best_of(kept: Mapping[int, Tensors], progress: Progress, job: TrainingJob) -> dict[int, Tensors]:
    """The weights of the best validations by their steps, the best first; of equal ones the first."""
    ranked = sorted(progress.history, key=lambda point: (-point.val_accuracy, point.step))[: job.keep_best]
    return {point.step: kept[point.step] for point in ranked}


def _state(module: nn.Module, optimizer: Optimizer, progress: Progress, kept: Mapping[int, Tensors]) -> TrainingState:
    best = {f"{step}/{name}": tensor for step, tensors in kept.items() for name, tensor in tensors.items()}
    return TrainingState(
        progress=progress, weights=dict(module.state_dict()), optimizer=optimizer.state(), best_weights=best
    )


def _by_step(best_weights: Tensors) -> dict[int, Tensors]:
    found: dict[int, Tensors] = {}
    for name, tensor in best_weights.items():
        step, _, own_name = name.partition("/")
        found.setdefault(int(step), {})[own_name] = tensor
    return found


def _resume(job: TrainingJob, optimizer: Optimizer) -> tuple[Progress, dict[int, Tensors]]:
    """Put the newest checkpoint into the module and the optimiser, where there is one.

    Other hosts may not see it: they get it from the first worker.
    """
    spread = is_spread_over_hosts(job.workers)
    state = job.checkpoints.latest() if job.workers.is_first or not spread else None
    if spread:
        state = job.workers.from_first(state, job.device)
    if state is None:
        return Progress(), {}
    job.lines.log(f"resuming from the checkpoint of step {state.progress.step:,}")
    job.objective.module.load_state_dict(state.weights)
    optimizer.load_state(state.optimizer)
    return state.progress, _by_step(state.best_weights)


def _copy(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}
