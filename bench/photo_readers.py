"""Ways to read every JPEG photo of a folder of class folders once. `python -m bench.photo_readers NAME FOLDER SIZE_PX`.

Prints, as JSON, what it took from the folder's path to the last photo, without the import of libraries.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from kshot.runtime.cpu import usable_cores

_AT_ONCE = 32  # photos in a batch of the loader, and of a process that decodes


def main() -> int:
    name, folder, size_px = sys.argv[1:]
    with READERS[name](Path(folder), int(size_px)) as read:
        started, started_cpu = time.perf_counter(), _cpu_s()
        n_read = read()
        seconds, cpu_s = time.perf_counter() - started, _cpu_s() - started_cpu
    n_there = len(_paths(Path(folder)))
    if n_read != n_there:
        print(f"error: {name} read {n_read} photos; needed {n_there}", file=sys.stderr)
        return 1
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s}))
    return 0


def _cpu_s() -> float:
    """Of this process and of those of it that ended."""
    return sum(os.times()[:4])


Read = Callable[[], int]


@contextmanager
def _kshot(folder: Path, size_px: int) -> Iterator[Read]:
    """An ingest, as the command does it: checked, resized, hashed and written to the disk."""
    from kshot.ingest.pack import DEFAULT_ITEM, ingest

    item = replace(DEFAULT_ITEM, image_size=size_px)
    with TemporaryDirectory(prefix="kshot-bench-") as data:
        yield lambda: ingest(folder, "photos", Path(data), item=item).added


@contextmanager
def _loader(folder: Path, size_px: int) -> Iterator[Read]:
    """torchvision's ImageFolder, resized and cropped as its examples do, through a DataLoader into float32 tensors."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    def read() -> int:
        transform = Compose([Resize(size_px), CenterCrop(size_px), ToTensor()])
        loader = DataLoader(ImageFolder(folder, transform), batch_size=_AT_ONCE, num_workers=usable_cores())
        return sum(len(images) for images, _ in loader)

    yield read


@contextmanager
def _pillow(folder: Path, size_px: int) -> Iterator[Read]:
    """Pillow's decoding alone, which is libjpeg-turbo's; nothing is resized or kept."""
    yield lambda: _in_processes(_decode_by_pillow, _paths(folder))


@contextmanager
def _torchvision(folder: Path, size_px: int) -> Iterator[Read]:
    """torchvision's decode_jpeg alone."""
    import torchvision.io  # noqa: F401  # before the processes that are forked from this one

    yield lambda: _in_processes(_decode_by_torchvision, _paths(folder))


READERS = {"kshot": _kshot, "loader": _loader, "pillow": _pillow, "torchvision": _torchvision}


def _in_processes(decode: Callable[[Path], int], paths: Iterable[Path]) -> int:
    with get_context("fork").Pool(usable_cores()) as pool:
        return sum(pool.imap_unordered(decode, paths, chunksize=_AT_ONCE))


def _decode_by_pillow(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
    return 1


def _decode_by_torchvision(path: Path) -> int:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
    return 1


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.jpg"))


if __name__ == "__main__":
    sys.exit(main())
