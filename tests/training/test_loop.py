from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms.protonet import ProtoNet
from kshot.episodes.episode import EpisodeShape
from kshot.errors import TrainingError
from kshot.runtime.lines import silent_lines
from kshot.runtime.workers import Workers
from kshot.training.loop import Progress, TrainingJob, TrainingSettings, TrainingState, run_training
from kshot.training.objectives import Episodic
from tests.toy_episodes import LinearBackbone, point_pools
from tests.training.fakes import NoCheckpoints

SETTINGS = TrainingSettings(
    n_steps=12, episodes_per_step=2, outer_lr=0.01, schedule="cosine", validate_every=4, checkpoint_every_s=0
)


class Memory:
    """Keeps every state; `latest` gives the one it is told to."""

    def __init__(self, resume_from: TrainingState | None = None) -> None:
        self.states: list[TrainingState] = []
        self.resume_from = resume_from

    def latest(self) -> TrainingState | None:
        return self.resume_from

    def save(self, state: TrainingState) -> None:
        copied = {
            name: {k: t.clone() for k, t in getattr(state, name).items()}
            for name in ("weights", "optimizer", "best_weights")
        }
        self.states.append(replace(state, **copied))


def job(checkpoints: Memory | NoCheckpoints, settings: TrainingSettings = SETTINGS) -> TrainingJob:
    torch.manual_seed(0)
    loader, pool, _ = point_pools(EpisodeShape(n_way=4, k_shot=1, n_query=2))
    return TrainingJob(
        objective=Episodic(learner=ProtoNet(LinearBackbone()), train=loader, val_pool=pool),
        settings=settings,
        checkpoints=checkpoints,
        lines=silent_lines(),
    )


def weights_after(training: TrainingJob) -> list[Tensor]:
    run_training(training)
    return [tensor.clone() for tensor in training.objective.module.state_dict().values()]


def test_without_a_step_the_module_is_scored_as_it_is() -> None:
    memory = Memory()
    training = job(memory, TrainingSettings(n_steps=0))
    before = [tensor.clone() for tensor in training.objective.module.state_dict().values()]
    for parameter in training.objective.module.parameters():
        parameter.requires_grad_(False)
    progress = run_training(training)
    after = training.objective.module.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    (point,) = progress.history
    assert (progress.step, point.step) == (0, 0)
    assert progress.best_accuracy == point.val_accuracy == training.objective.score(training.workers, training.lines)
    assert memory.states == []


@pytest.mark.parametrize("killed_after", [1, 4, 7, 11])
def test_a_run_resumed_at_any_step_ends_with_the_same_weights_to_the_bit(killed_after: int) -> None:
    memory = Memory()
    unbroken = weights_after(job(memory))
    state = next(s for s in memory.states if s.progress.step == killed_after)
    resumed = weights_after(job(Memory(resume_from=state)))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


def test_a_finished_run_is_not_trained_further() -> None:
    memory = Memory()
    run_training(job(memory))
    again = Memory(resume_from=memory.states[-1])
    assert run_training(job(again)).step == 12
    assert again.states == []


def test_the_weights_kept_are_those_best_on_meta_val() -> None:
    training = job(NoCheckpoints(), replace(SETTINGS, outer_lr=5.0, n_steps=20, schedule="constant", validate_every=1))
    progress = run_training(training)
    best = max(point.val_accuracy for point in progress.history)
    assert progress.best_accuracy == best
    settings = replace(training.settings, n_steps=1, outer_lr=1e-12)
    after = TrainingJob(**{**vars(training), "settings": settings, "checkpoints": NoCheckpoints()})
    assert run_training(after).history[0].val_accuracy == pytest.approx(best)


def test_training_stops_after_the_given_number_of_validations_without_a_better_one() -> None:
    progress = run_training(job(NoCheckpoints(), replace(SETTINGS, n_steps=400, outer_lr=1e-12, patience=3)))
    assert progress.validations_since_best == 3
    assert progress.step == 16  # the first validation is the best, three more follow


def test_the_mean_loss_and_learning_rate_are_kept_for_every_validation() -> None:
    progress = run_training(job(NoCheckpoints()))
    assert [point.step for point in progress.history] == [4, 8, 12]
    assert all(0 < point.loss < 5 for point in progress.history)
    rates = [point.learning_rate for point in progress.history]
    assert rates == sorted(rates, reverse=True)


def test_schedules() -> None:
    halving = TrainingSettings(n_steps=10, outer_lr=0.8, schedule="halving", halve_every=4)
    assert [halving.learning_rate(step) for step in (0, 3, 4, 9)] == [0.8, 0.8, 0.4, 0.2]
    cosine = TrainingSettings(n_steps=10, outer_lr=0.8, schedule="cosine")
    assert [cosine.learning_rate(step) for step in (0, 5, 10)] == pytest.approx([0.8, 0.4, 0.0])
    assert TrainingSettings(n_steps=10, outer_lr=0.8).learning_rate(9) == 0.8


class Exploding(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items * self.scale


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training_with_the_step_and_a_remedy(value: float) -> None:
    training = job(NoCheckpoints())
    assert isinstance(training.objective, Episodic)
    training = replace(training, objective=replace(training.objective, learner=ProtoNet(Exploding(value))))
    with pytest.raises(TrainingError, match="step 0: loss nan, .*lower meta_train.training.outer_lr"):
        run_training(training)


def test_shares_of_workers_are_disjoint_and_complete() -> None:
    shares = [Workers(rank, 3).share(range(4, 15)) for rank in range(3)]
    assert shares == [range(4, 8), range(8, 12), range(12, 15)]
    assert [len(Workers(rank, 3).share(range(2))) for rank in range(3)] == [1, 1, 0]


def test_no_progress_has_no_steps() -> None:
    assert Progress().steps_since_validation == 0
