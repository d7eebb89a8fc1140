"""Building and choosing the native kernels, and the convolutions; what the others compute is in test_conv_block.py."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.backbones.conv4 import Conv4
from kshot.backbones.layers import native
from kshot.backbones.layers.conv_block import conv_block
from kshot.errors import StageError

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and not os.environ.get("CI"), reason="no C++ compiler, without which CI fails"
)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without a library."""
    monkeypatch.setattr(native.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


@needs_compiler
def test_building_leaves_one_library_and_the_next_time_does_nothing(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-O0"))
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
@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_a_processor_with_other_instructions_has_a_library_of_its_own(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    here, could = native.native_library(), torch.backends.cpu.get_cpu_capability()
    if could == capability or could not in native._FLAGS_OF_CPU:
        pytest.skip(f"torch finds {could} here")
    monkeypatch.setattr(native.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert native.native_library() != here
    assert native.build_native() != here
    assert native.use_native_kernels()
    torch.manual_seed(0)
    for channels in (1, 16):
        x, weight = torch.rand(3, channels, 8, 8), torch.randn(21, channels, 3, 3)
        native.use_native_kernels()
        found = conv_block(x, weight, torch.ones(21), torch.zeros(21), n_reference=3, eps=1e-5)
        native.use_native_kernels(False)
        plain = conv_block(x, weight, torch.ones(21), torch.zeros(21), n_reference=3, eps=1e-5)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit() -> None:
    program = """
import sys, torch
from hashlib import sha256
from kshot.backbones.layers.conv_block import conv_block
from kshot.backbones.layers.native import use_native_kernels
assert use_native_kernels()
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
for channels, groups, wants_x in ((2, 1, False), (16, 1, True), (16, 3, True)):
    x = torch.rand(81, groups * channels, 9, 9, requires_grad=wants_x)
    inputs = [torch.randn(groups * 24, channels, 3, 3), torch.ones(groups * 24), torch.zeros(groups * 24)]
    wanted = [p.requires_grad_() for p in inputs] + [x] * wants_x
    y = conv_block(x, *inputs, n_reference=81, eps=1e-5, groups=groups)
    first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    print([sha256(g.detach().contiguous().numpy()).hexdigest() for g in (y, *first, *second)])
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


def test_a_library_that_cannot_be_loaded_says_what_to_do(environment: Path) -> None:
    library = native.native_library()
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    with pytest.raises(StageError, match="cannot be loaded.*next: remove it, then kshot kernels"):
        native.use_native_kernels()


def test_an_environment_that_cannot_be_written_is_one_line(environment: Path) -> None:
    (environment / "share").write_text("a file where a folder belongs")
    with pytest.raises(StageError, match="cannot be written"):
        native.build_native()


@pytest.fixture
def kernels_in_use() -> None:
    native.build_native()
    assert native.use_native_kernels()


def native_convolutions(x: Tensor, weight: Tensor, y_bar: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution and the gradients of x and weight."""
    return (
        native.convolve(x, weight, groups),
        native.convolve_input_gradient(y_bar, weight, groups),
        native.convolve_weight_gradient(x, y_bar, groups),
    )


def torch_convolutions(x: Tensor, weight: Tensor, y_bar: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = F.conv2d(x, weight, padding=1, groups=groups)
    return y.detach(), *torch.autograd.grad(y, (x, weight), y_bar)


def operands(
    images: int, groups: int, inputs: int, outputs: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and y_bar in float64."""
    torch.manual_seed(0)
    x = torch.randn(images, groups * inputs, height, width, dtype=torch.float64)
    weight = torch.randn(groups * outputs, inputs, 3, 3, dtype=torch.float64)
    return x, weight, torch.randn(images, groups * outputs, height, width, dtype=torch.float64)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """As a part of the largest value."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


@needs_compiler
@pytest.mark.usefixtures("kernels_in_use")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels-last"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (3, 3), (9, 4), (14, 14)])
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 16, 64), (3, 19, 41), (2, 40, 3), (1, 113, 70)])
def test_convolutions_and_their_gradients_are_torchs(
    layout: torch.memory_format, height: int, width: int, groups: int, inputs: int, outputs: int
) -> None:
    x, weight, y_bar = (one.to(memory_format=layout) for one in operands(31, groups, inputs, outputs, height, width))
    found = native_convolutions(x, weight, y_bar, groups)
    for ours, torchs in zip(found, torch_convolutions(x, weight, y_bar, groups), strict=True):
        assert largest_difference(ours, torchs) < 50 * torch.finfo(torch.float64).eps


@needs_compiler
@pytest.mark.usefixtures("kernels_in_use")
@pytest.mark.parametrize("size", [3, 14])
@pytest.mark.parametrize("channels", [16, 70])
def test_in_float32_convolutions_keep_as_many_digits_as_torchs(size: int, channels: int) -> None:
    exact = operands(31, 1, channels, channels, size, size)
    x, weight, y_bar = (one.float() for one in exact)
    ways = native_convolutions(x, weight, y_bar, 1), torch_convolutions(x, weight, y_bar, 1)
    for ours, torchs, expected in zip(*ways, torch_convolutions(*exact, 1), strict=True):
        assert 0 < largest_difference(ours, expected) < 3 * largest_difference(torchs, expected)


@needs_compiler
@pytest.mark.usefixtures("kernels_in_use")
def test_convolutions_side_by_side_have_the_bits_of_each_alone() -> None:
    x, weight, y_bar = (one.float() for one in operands(9, 3, 16, 24, 7, 7))
    y, x_bar, weight_bar = native_convolutions(x, weight, y_bar, 3)
    for i in range(3):
        inputs, outputs = slice(16 * i, 16 * i + 16), slice(24 * i, 24 * i + 24)
        alone = native_convolutions(x[:, inputs], weight[outputs], y_bar[:, outputs], 1)
        for one, together in zip(alone, (y[:, outputs], x_bar[:, inputs], weight_bar[outputs]), strict=True):
            assert torch.equal(one, together)


@needs_compiler
@pytest.mark.usefixtures("kernels_in_use")
def test_no_images_give_a_gradient_of_zeros() -> None:
    y, x_bar, weight_bar = native_convolutions(*operands(0, 1, 16, 16, 7, 7), 1)
    assert y.shape == x_bar.shape == (0, 16, 7, 7)
    assert not weight_bar.any()


@needs_compiler
@pytest.mark.usefixtures("kernels_in_use")
def test_weights_that_do_not_fit_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found weight \(16, 17, 3, 3\) for x \(5, 16, 7, 7\) in 1 groups"):
        native.convolve(torch.zeros(5, 16, 7, 7), torch.zeros(16, 17, 3, 3), 1)


@needs_compiler
@pytest.mark.usefixtures("kernels_in_use")
@pytest.mark.parametrize(("channels", "native_ones"), [(15, 0), (16, 1), (256, 1), (257, 0)])
def test_a_block_of_16_to_256_channels_convolves_natively(
    monkeypatch: pytest.MonkeyPatch, channels: int, native_ones: int
) -> None:
    names = ("convolve", "convolve_input_gradient", "convolve_weight_gradient")
    calls = Counter[str]()
    for name in names:
        monkeypatch.setattr(native, name, counted(getattr(native, name), calls))
    x, weight = torch.rand(2, channels, 2, 2, requires_grad=True), torch.rand(channels, channels, 3, 3)
    weight.requires_grad_()
    y = conv_block(x, weight, torch.ones(channels), torch.zeros(channels), n_reference=2, eps=1e-5)
    assert calls == Counter({"convolve": native_ones})
    first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
    assert calls == Counter(dict.fromkeys(names, native_ones))
    torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
    assert all(calls[name] == 3 * native_ones for name in names)


def counted(function: Callable[..., Tensor], calls: Counter[str]) -> Callable[..., Tensor]:
    def count_and_call(*args: Tensor | int) -> Tensor:
        calls[function.__name__] += 1
        return function(*args)

    return count_and_call


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_with_native_kernels_agrees_with_torchs(channels: int) -> None:
    torch.manual_seed(0)
    net = Conv4(24, channels=channels, image_size=31)
    images, gradients = torch.rand(17, channels, 31, 31), []
    native.build_native()
    for wanted in (True, False):
        assert native.use_native_kernels(wanted) is wanted
        loss = net(images, 17).square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert 0 < float(difference) < 1e-4
