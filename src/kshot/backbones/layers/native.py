"""A convolution block in C++, where it has been built for this environment and processor.

`cpp/convolution.cpp` has 3x3 convolutions in fewer multiplications than torch's, `cpp/block.cpp` what surrounds them
in one or two passes over memory where torch takes several. Nothing needs them: what is not built, or not asked for
by `use_native_kernels`, is torch's. Results differ by rounding.

Shapes: B images, G groups, I input and O output channels of a group, K = 9 I, C channels, H,W, h,w = H//2,W//2.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kshot.errors import StageError

_FOLDER = Path(__file__).with_name("cpp")
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_FLAGS_OF_CPU = {  # by torch's name for it: what torch has found the processor to have
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
_TYPE_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_SHOWN_OF_COMPILER = 300  # characters of its error message

_Function = Callable[..., None]
_loaded: ctypes.CDLL | None = None
_functions: dict[tuple[str, torch.dtype], _Function] = {}


def native_sources() -> list[Path]:
    """The files that the library is made of."""
    return sorted([*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h")])


def native_library() -> Path:
    """Where the library of this source, environment and kind of processor is, or would be.

    Another source or a processor with other instructions has another name, so that no process loads
    what it cannot run. ATEN_CPU_CAPABILITY=avx2 holds torch to older instructions than the processor's, and
    so has the library that such a processor would have.
    """
    digest = sha256(repr(_flags()).encode())
    for path in native_sources():
        digest.update(path.read_bytes())
    return Path(sysconfig.get_path("data")) / "share" / "kshot" / f"native-{digest.hexdigest()[:16]}.so"


def build_native() -> Path:
    """Compile the sources into this environment, where it is not there yet. Raises StageError."""
    library = native_library()
    if library.exists():
        return library
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise StageError(f"found no C++ compiler {compiler[0]}; next: install g++, or name one in CXX")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            units = [str(path) for path in native_sources() if path.suffix == ".cpp"]
            command = [*compiler, *_flags(), *units, "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                complaint = " ".join(done.stderr.split())[:_SHOWN_OF_COMPILER]
                raise StageError(f"{shlex.join(command)} exited with {done.returncode}: {complaint}")
            _load(made)
            made.replace(library)
    except OSError as error:
        raise StageError(f"{library.parent} cannot be written: {error}") from error
    return library


def use_native_kernels(wanted: bool = True) -> bool:
    """Let this process's blocks use the library where it has been built, or torch alone; return True if they use it."""
    global _loaded
    _functions.clear()
    _loaded = _load(native_library()) if wanted and native_library().exists() else None
    return _loaded is not None


def native_compiler() -> str | None:
    """The compiler of the kernels that this process uses, on which their rounding depends; None where it uses none."""
    if _loaded is None:
        return None
    version = ctypes.c_char_p.in_dll(_loaded, "kshot_compiler").value
    return (version or b"").decode()


def serves(x: Tensor, *others: Tensor) -> bool:
    """Whether the functions below take these tensors."""
    fits = x.device.type == "cpu" and x.dtype in _TYPE_NAMES
    return _loaded is not None and fits and all(one.dtype == x.dtype and one.device == x.device for one in others)


def convolve(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """F.conv2d with padding 1: (B, C, H, W) of x (B, G*I, H, W) and weight (C, I, 3, 3). Raises ValueError."""
    if weight.shape[1:] != (x.shape[1] / groups, 3, 3) or len(weight) % groups:
        raise ValueError(f"found weight {(*weight.shape,)} for x {(*x.shape,)} in {groups} groups; need (G*O, I, 3, 3)")
    return _convolve("convolve", x, weight, groups, len(weight) // groups)


def convolve_input_gradient(y_bar: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Gradient of x (B, G*I, H, W) for y_bar (B, C, H, W); weight (C, I, 3, 3)."""
    return _convolve("convolve_input_gradient", y_bar, weight, groups, weight.shape[1])


def convolve_weight_gradient(x: Tensor, y_bar: Tensor, groups: int) -> Tensor:
    """Gradient of weight (C, I, 3, 3) for y_bar (B, C, H, W); x (B, G*I, H, W)."""
    x, y_bar, channels = _dense(x), _dense(y_bar), y_bar.shape[1]
    size = (channels, x.shape[1] // groups, 3, 3)
    weight_bar = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    _call("convolve_weight_gradient", x, y_bar, _convolution(x, groups, channels // groups), weight_bar)
    return weight_bar


def patch_moments(images: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean (G, K) and covariance (G, K, K), float64, of all patches of each group's channels.

    A patch is what lies under a 3x3 window at any pixel of images (B, G*I, H, W), zero beyond the edge.
    """
    images = _dense(images)
    b, c, h, w = images.shape
    k = c // groups * 9
    sums = images.new_empty(groups, k, dtype=torch.float64)
    products = images.new_empty(groups, k, k, dtype=torch.float64)
    _call("patch_moments", images, _convolution(images, groups, 0), sums, products)
    mean = sums / (b * h * w)
    return mean, products / (b * h * w) - mean[:, :, None] * mean[:, None, :]


def conv_relu_pool(images: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """relu(max_pool(convolution) + shift) (B, G*O, h, w) and the places of the maxima, for the functions below.

    images (B, G*I, H, W), weight (G, K, O), shift (G, O).
    """
    images, weight, shift = _dense(images), weight.contiguous(), shift.contiguous()
    y = _pooled_of(images, shift.numel())
    where = torch.empty_like(y, dtype=torch.uint8)
    _call("conv_relu_pool", images, weight, shift, _convolution(images, *shift.shape), y, where)
    return y, where


def conv_at_maxima(images: Tensor, weight: Tensor, shift: Tensor, where: Tensor) -> Tensor:
    """The convolution plus `shift` read at `where`, zero where ReLU clipped: (B, G*O, h, w)."""
    images, weight, shift = _dense(images), weight.contiguous(), shift.contiguous()
    y = _pooled_of(images, shift.numel())
    _call("conv_at_maxima", images, weight, shift, where, _convolution(images, *shift.shape), y)
    return y


def conv_relu_pool_gradient(y_bar: Tensor, images: Tensor, where: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Gradients of weight (G, K, O) and shift (G, O) for that of y, y_bar (B, G*O, h, w)."""
    images, y_bar = _dense(images), _dense(y_bar)
    outputs = y_bar.shape[1] // groups
    weight_bar = y_bar.new_empty(groups, images.shape[1] // groups * 9, outputs)
    shift_bar = y_bar.new_empty(groups, outputs)
    shape = _convolution(images, groups, outputs)
    _call("conv_relu_pool_gradient", y_bar, images, where, shape, weight_bar, shift_bar)
    return weight_bar, shift_bar


def norm_relu_pool(x: Tensor, slope: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, ...]:
    """max_pool(relu(slope * xhat + offset)) and what its gradients need: extremes, where, mean and inverse_std.

    x (B, C, H, W), slope and offset (C,) -> the first three (B, C, h, w), the others (C,).
    """
    x, slope, offset = _dense(x), slope.contiguous(), offset.contiguous()
    y, extremes = _pooled_of(x, x.shape[1]), _pooled_of(x, x.shape[1])
    where = torch.empty_like(y, dtype=torch.uint8)
    mean, inverse_std = torch.empty_like(slope), torch.empty_like(slope)
    _call("norm_relu_pool", x, slope, offset, ctypes.c_double(eps), _batch(x), y, extremes, where, mean, inverse_std)
    return y, extremes, where, mean, inverse_std


def norm_relu_pool_gradient(
    y_bar: Tensor, x: Tensor, slope: Tensor, extremes: Tensor, where: Tensor, mean: Tensor, inverse_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, H, W), slope and offset (C,) for that of y."""
    x = _dense(x)
    x_bar, slope_bar, offset_bar = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    given = (_dense(y_bar), x, slope.contiguous(), extremes, where, mean, inverse_std)
    _call("norm_relu_pool_gradient", *given, _batch(x), x_bar, slope_bar, offset_bar)
    return x_bar, slope_bar, offset_bar


def norm_relu_pool_second(
    v: Tensor,
    v_slope: Tensor,
    v_offset: Tensor,
    y_bar: Tensor,
    x: Tensor,
    slope: Tensor,
    extremes: Tensor,
    where: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    slope_bar: Tensor,
    offset_bar: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y_bar, x and slope for the cotangents v, v_slope and v_offset of the three gradients above."""
    x = _dense(x)
    of_y_bar, of_x, of_slope = torch.empty_like(extremes), torch.empty_like(x), torch.empty_like(mean)
    given = (_dense(v), v_slope.contiguous(), v_offset.contiguous(), _dense(y_bar), x)
    saved = (slope.contiguous(), extremes, where, mean, inverse_std, slope_bar, offset_bar)
    _call("norm_relu_pool_second", *given, *saved, _batch(x), of_y_bar, of_x, of_slope)
    return of_y_bar, of_x, of_slope


class _ConvolutionShape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("images", "groups", "inputs", "outputs", "height", "width")]


class _BatchShape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("images", "channels", "height", "width")]


def _convolve(name: str, x: Tensor, weight: Tensor, groups: int, outputs: int) -> Tensor:
    b, _, h, w = x.shape
    y = torch.empty((b, groups * outputs, h, w), dtype=x.dtype, memory_format=torch.channels_last)
    _call(name, _dense(x), _dense(weight), _convolution(x, groups, outputs), y)
    return y


def _convolution(images: Tensor, groups: int, outputs: int) -> _ConvolutionShape:
    b, c, h, w = images.shape
    return _ConvolutionShape(b, groups, c // groups, outputs, h, w)


def _batch(x: Tensor) -> _BatchShape:
    return _BatchShape(*x.shape)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pooled_of(x: Tensor, channels: int) -> Tensor:
    b, _, h, w = x.shape
    size = (b, channels, h // 2, w // 2)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _load(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise StageError(f"{library} cannot be loaded: {error}; next: remove it, then kshot kernels") from error


def _call(name: str, first: Tensor, *rest: Tensor | ctypes.Structure | ctypes.c_double) -> None:
    function = _function(name, first.dtype)
    function(*(_argument(value, first) for value in (first, *rest)))


def _argument(value: Tensor | ctypes.Structure | ctypes.c_double, first: Tensor) -> object:
    if isinstance(value, Tensor):
        assert value.dtype in (first.dtype, torch.uint8, torch.float64)
        assert value.device == first.device
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.byref(value) if isinstance(value, ctypes.Structure) else value


def _function(name: str, dtype: torch.dtype) -> _Function:
    if (name, dtype) not in _functions:
        assert _loaded is not None
        address = ctypes.c_void_p.in_dll(_loaded, f"kshot_{name}_{_TYPE_NAMES[dtype]}").value
        assert address is not None
        _functions[name, dtype] = ctypes.CFUNCTYPE(None)(address)
    return _functions[name, dtype]


def _flags() -> tuple[str, ...]:
    return *_FLAGS, *_FLAGS_OF_CPU.get(torch.backends.cpu.get_cpu_capability(), ())
