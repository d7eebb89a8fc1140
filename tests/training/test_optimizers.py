import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch

from kshot.errors import ConfigError
from kshot.training.optimizers import (
    AdamConfig,
    AdamWConfig,
    Optimizer,
    OptimizerConfig,
    SGDConfig,
    flat,
    layer_rates,
)


def test_steps_are_those_of_torchs_adam() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    ours, theirs = ([kernel.clone().requires_grad_(), torch.ones(5, requires_grad=True)] for _ in range(2))
    adam, reference = Optimizer(ours), torch.optim.Adam(theirs, foreach=True)
    for learning_rate in (0.1, 0.03, 0.01):
        gradients = [torch.randn(p.shape) for p in theirs]
        adam.step(flat(gradients), learning_rate)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        reference.param_groups[0]["lr"] = learning_rate
        reference.step()
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_goes_on_from_a_restored_state_to_the_bit() -> None:
    start, gradient = torch.arange(6.0).view(2, 3), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    unbroken = Optimizer([start.clone()])
    unbroken.step(flat([gradient]), 0.1)
    state = {name: tensor.clone() for name, tensor in unbroken.state().items()}
    resumed = Optimizer([unbroken.parameters[0].clone()])
    resumed.load_state(state)
    for optimizer in (unbroken, resumed):
        optimizer.step(flat([gradient * 2]), 0.1)
    assert torch.equal(unbroken.parameters[0], resumed.parameters[0])


def test_a_state_that_lacks_a_tensor_is_refused() -> None:
    with pytest.raises(KeyError, match="exp_avg"):
        Optimizer([torch.zeros(2)]).load_state({})


def test_a_step_does_not_import_torchs_compiler() -> None:
    step = "from kshot.training.optimizers import Optimizer; Optimizer([torch.ones(2)]).step(torch.ones(2), 0.1)"
    subprocess.run(
        [sys.executable, "-c", f"import sys, torch; {step}; assert 'torch._dynamo' not in sys.modules"], check=True
    )


def parameters() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3).requires_grad_(), torch.ones(5, requires_grad=True)]


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (AdamConfig(weight_decay=0.1), partial(torch.optim.Adam, weight_decay=0.1)),
        (AdamWConfig(weight_decay=0.1), partial(torch.optim.AdamW, weight_decay=0.1)),
        (SGDConfig(weight_decay=0.1), partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1)),
        (SGDConfig(momentum=0.0, weight_decay=0.0), torch.optim.SGD),
        (AdamConfig(clip_norm=0.5), torch.optim.Adam),
    ],
    ids=["adam", "adamw", "sgd", "plain sgd", "clipped"],
)
def test_each_optimizer_does_the_steps_of_torchs_and_leaves_biases_undecayed(
    settings: OptimizerConfig, reference: Callable[..., torch.optim.Optimizer]
) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, settings)
    steps = reference([{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0}], lr=0.1)
    for _ in range(4):
        gradients = [torch.randn(p.shape) for p in theirs]
        optimizer.step(flat(gradients), 0.1)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs, settings.clip_norm)
        steps.step()
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_layers_learn_at_their_own_rates_and_the_longest_name_counts() -> None:
    names, start = ["backbone.0.weight", "backbone.1.weight", "head.weight"], [torch.zeros(2) for _ in range(3)]
    rates = layer_rates(names, start, {"backbone": 0.0, "backbone.1": 0.5})
    optimizer = Optimizer(start, SGDConfig(momentum=0.0, weight_decay=0.0), rates)
    optimizer.step(torch.ones(6), 0.1)
    assert [float(one[0]) for one in start] == pytest.approx([0.0, -0.05, -0.1])


def test_a_rate_of_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer_rates names 'stem', .*such as backbone, backbone.0.weight"):
        layer_rates(["backbone.0.weight"], [torch.zeros(2)], {"stem": 0.1})


def test_the_average_of_the_weights_stands_in_for_them_and_goes_on_from_a_restored_state() -> None:
    start = [torch.zeros(2)]
    optimizer = Optimizer(start, SGDConfig(momentum=0.0, weight_decay=0.0, ema=0.5))
    seen, average = [], 0.0
    for n in range(1, 9):
        optimizer.step(torch.ones(2), 0.1)
        average += (1 - min(0.5, (1 + n) / (10 + n))) * (-0.1 * n - average)
        with optimizer.averaged():
            seen.append(float(start[0][0]))
        assert seen[-1] == pytest.approx(average) and float(start[0][0]) == pytest.approx(-0.1 * n)
        if n == 4:
            resumed = [start[0].clone()]
            other = Optimizer(resumed, SGDConfig(momentum=0.0, weight_decay=0.0, ema=0.5))
            other.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()})
    for _ in range(4):
        other.step(torch.ones(2), 0.1)
    with other.averaged():
        assert float(resumed[0][0]) == seen[-1]
