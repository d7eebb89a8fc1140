import subprocess
import sys

import pytest
import torch

from kshot.training.optimizers import Adam, flat


def test_steps_are_those_of_torchs_adam() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    ours, theirs = ([kernel.clone().requires_grad_(), torch.ones(5, requires_grad=True)] for _ in range(2))
    adam, reference = Adam(ours), torch.optim.Adam(theirs, foreach=True)
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
    unbroken = Adam([start.clone()])
    unbroken.step(flat([gradient]), 0.1)
    state = {name: tensor.clone() for name, tensor in unbroken.state().items()}
    resumed = Adam([unbroken.parameters[0].clone()])
    resumed.load_state(state)
    for optimizer in (unbroken, resumed):
        optimizer.step(flat([gradient * 2]), 0.1)
    assert torch.equal(unbroken.parameters[0], resumed.parameters[0])


def test_a_state_that_lacks_a_tensor_is_refused() -> None:
    with pytest.raises(KeyError, match="exp_avg"):
        Adam([torch.zeros(2)]).load_state({})


def test_a_step_does_not_import_torchs_compiler() -> None:
    step = (
        "import sys, torch; from kshot.training.optimizers import Adam; Adam([torch.ones(2)]).step(torch.ones(2), 0.1)"
    )
    subprocess.run([sys.executable, "-c", f"{step}; assert 'torch._dynamo' not in sys.modules"], check=True)
