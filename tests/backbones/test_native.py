"""Building and choosing the native kernels, and the convolutions; what the others compute is in test_conv_block.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.backbones import Conv4Config, native
from kshot.backbones.conv_block import conv_block
from kshot.errors import StageError

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without a library."""
    monkeypatch.setattr(native.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


@needs_compiler
def test_building_leaves_one_library_and_the_next_time_does_nothing(environment: Path) -> None:
    library = native.build_native()
    made = library.stat().st_mtime_ns
    assert [path for path in environment.rglob("*") if path.is_file()] == [library]
    assert native.build_native().stat().st_mtime_ns == made


def test_without_a_compiler_building_says_what_to_install(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(StageError, match="found no C\\+\\+ compiler no-such-compiler; next: install g"):
        native.build_native()


def test_a_failing_compiler_leaves_nothing_and_its_first_words_are_shown(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = environment / "compiler"
    compiler.write_text("#!/bin/sh\necho 'no room on the disk' >&2\nexit 4\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(StageError, match="exited with 4: no room on the disk"):
        native.build_native()
    assert not list((environment / "share" / "kshot").iterdir())


def test_unbuilt_kernels_leave_the_work_to_torch(environment: Path) -> None:
    assert not native.use_native_kernels()
    assert not native.serves(torch.zeros(1, 1, 4, 4))


@needs_compiler
def test_a_processor_with_other_instructions_has_a_library_of_its_own(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = native.build_native()
    monkeypatch.setattr(native.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert native.native_library() != here
    assert not native.use_native_kernels()
    assert native.build_native() != here
    assert native.use_native_kernels()
    torch.manual_seed(0)
    x, weight = torch.rand(3, 1, 8, 8), torch.randn(5, 1, 3, 3)
    found = conv_block(x, weight, torch.ones(5), torch.zeros(5), n_reference=3, eps=1e-5)
    native.use_native_kernels(False)
    plain = conv_block(x, weight, torch.ones(5), torch.zeros(5), n_reference=3, eps=1e-5)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit() -> None:
    program = """
import sys, torch
from kshot.backbones.conv_block import conv_block
from kshot.backbones.native import use_native_kernels
assert use_native_kernels()
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
for x in (torch.rand(21, 2, 9, 9), torch.rand(81, 16, 9, 9, requires_grad=True)):
    inputs = [torch.randn(24, x.shape[1], 3, 3), torch.ones(24), torch.zeros(24)]
    wanted = [p.requires_grad_() for p in inputs]
    y = conv_block(x, *inputs, n_reference=len(x), eps=1e-5)
    first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    print([g.tolist() for g in (y.flatten(), *first, *second)])
"""
    native.build_native()
    found = [
        subprocess.run([sys.executable, "-c", program, threads], capture_output=True, text=True, check=True).stdout
        for threads in ("1", "2", "3")
    ]
    assert found[0] == found[1] == found[2]


@needs_compiler
def test_the_source_compiles_without_a_warning(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = (*native._FLAGS, "-Wall", "-Wextra", "-Werror")
    monkeypatch.setattr(native, "_FLAGS", strict)
    native.build_native()


@needs_compiler
def test_a_library_that_cannot_be_loaded_says_what_to_do(environment: Path) -> None:
    library = native.build_native()
    library.write_bytes(b"no library")
    with pytest.raises(StageError, match="cannot be loaded.*next: remove it, then kshot kernels"):
        native.use_native_kernels()


def test_an_environment_that_cannot_be_written_is_one_line(environment: Path) -> None:
    (environment / "share").write_text("a file where a folder belongs")
    with pytest.raises(StageError, match="cannot be written"):
        native.build_native()


@needs_compiler
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (3, 3), (9, 4), (14, 14)])
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 16, 16), (3, 19, 41), (2, 40, 3)])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_convolutions_and_their_gradients_are_torchs(
    height: int, width: int, groups: int, inputs: int, outputs: int, precision: torch.dtype
) -> None:
    native.build_native()
    assert native.use_native_kernels()
    torch.manual_seed(0)
    x = torch.randn(31, groups * inputs, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(groups * outputs, inputs, 3, 3, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, padding=1, groups=groups)
    y_bar = torch.randn_like(y)
    expected = y.detach(), *torch.autograd.grad(y, (x, weight), y_bar)
    x, weight, y_bar = (one.detach().to(precision) for one in (x, weight, y_bar))
    found = (
        native.convolve(x, weight, groups),
        native.convolve_input_gradient(y_bar, weight, groups),
        native.convolve_weight_gradient(x, y_bar, groups),
    )
    for ours, torchs in zip(found, expected, strict=True):
        assert relative_difference(ours, torchs) < 50 * torch.finfo(precision).eps


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_with_native_kernels_agrees_with_torchs(channels: int) -> None:
    torch.manual_seed(0)
    net = Conv4Config(width=24).build(channels=channels, image_size=31)
    images, gradients = torch.rand(17, channels, 31, 31), []
    native.build_native()
    for wanted in (True, False):
        assert native.use_native_kernels(wanted) is wanted
        loss = net(images, 17).square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert 0 < float(difference) < 1e-4
