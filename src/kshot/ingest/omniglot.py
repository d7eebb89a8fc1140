"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
induction", 2015. Class splits of Vinyals and others, "Matching networks for one shot learning", 2016.
Drawings are 105x105, ink 0 on 1; items are 28x28, ink 255 on 0, and each rotation makes its own class.
"""

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from kshot.data.items.image import ImageKind, to_item
from kshot.data.packed import Splits
from kshot.errors import DataError
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.writer import Record

ITEM = ImageKind(image_size=28, channels=1, invert=True)
N_IMAGES = 32_460
SOURCE = "Omniglot, https://github.com/brendenlake/omniglot"
LICENCE = "MIT, Copyright (c) 2015 Brenden Lake"
FOLDER_VARIABLE = "KSHOT_OMNIGLOT"

_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_TIMEOUT_S = 60
_DRAWING_PX = 105
# Of the names and decoded drawings: an archive packed or compressed otherwise holds the same data.
_CONTENT_SHA256 = {
    "images_background.zip": "ee380035ad602749df7691a12c7935e0d1e5123b565f494357dcc94cd6d78594",
    "images_evaluation.zip": "72ddfd68fa15614fdf0bd1e77b514843948254bc4cfaa7c3b269e2195a5a8369",
}


def splits() -> Splits:
    """The split of every character, from lines such as "meta_train Angelic 1-20"."""
    names: dict[str, list[str]] = {}
    for line in files("kshot.ingest").joinpath("omniglot-splits.txt").read_text(encoding="utf-8").splitlines():
        split, alphabet, characters = line.split()
        first, last = map(int, characters.split("-"))
        names.setdefault(split, []).extend(f"{alphabet}/character{n:02d}" for n in range(first, last + 1))
    return Splits(
        meta_train=tuple(names["meta_train"]), meta_val=tuple(names["meta_val"]), meta_test=tuple(names["meta_test"])
    )


def records() -> Iterator[Record]:
    """Every drawing, by alphabet, character and drawer. Raise DataError when the archives cannot be had."""
    with _archives() as folder:
        for archive in _CONTENT_SHA256:
            yield from _archive_records(folder / archive)


@contextmanager
def _archives() -> Iterator[Path]:
    """A folder with both archives: the one that KSHOT_OMNIGLOT names, else a temporary one with a download."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        missing = [archive for archive in _CONTENT_SHA256 if not (Path(named) / archive).is_file()]
        if missing:
            raise DataError(f"{FOLDER_VARIABLE} is {named!r}, which has no {' and no '.join(missing)}; {_ways()}")
        yield Path(named)
        return
    with tempfile.TemporaryDirectory(prefix="kshot-omniglot-") as temporary:
        _download(Path(temporary))
        yield Path(temporary)


def _download(folder: Path) -> None:
    for archive in _CONTENT_SHA256:
        url = f"{_URL}/{archive}"
        try:
            with (
                urlopen(url, timeout=_TIMEOUT_S) as response,  # noqa: S310  # the scheme is written above
                (folder / archive).open("wb") as file,
            ):
                shutil.copyfileobj(response, file)
        except (OSError, HTTPException) as error:
            raise DataError(f"{url} cannot be downloaded ({error}); {_ways()}") from error


def _ways() -> str:
    return (
        f"either set {FOLDER_VARIABLE} to a folder with {' and '.join(_CONTENT_SHA256)}, "
        f"or leave it unset and let {_URL} be reachable"
    )


def _archive_records(path: Path) -> Iterator[Record]:
    drawings = read_drawings(path)
    found, needed = content_sha256(drawings), _CONTENT_SHA256[path.name]
    if found != needed:
        raise DataError(f"the drawings in {path} have sha256 {found[:12]}; needed {needed[:12]}; {_ways()}")
    for name, bits in drawings.items():
        _, alphabet, character, file = name.split("/")
        yield Record(
            id=f"{alphabet}/{character}/{file}",
            class_name=f"{alphabet}/{character}",
            group=alphabet,
            item=to_item(Image.frombytes("1", (_DRAWING_PX, _DRAWING_PX), bits), ITEM),
            source=path.name,
            original={"width": _DRAWING_PX, "height": _DRAWING_PX, "mode": "1"},
        )


def read_drawings(path: Path) -> dict[str, bytes]:
    """Name in the archive -> the drawing's pixels, one bit each, every row padded to a byte; in order of name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            return {name: _bits(archive.read(name)) for name in names}
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable archive of drawings ({error}); {_ways()}") from error


def content_sha256(drawings: dict[str, bytes]) -> str:
    """sha256 over the length and bytes of each name and drawing, in order of name."""
    digest = hashlib.sha256()
    for name, bits in sorted(drawings.items()):
        for part in (name.encode(), bits):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _bits(encoded: bytes) -> bytes:
    with Image.open(io.BytesIO(encoded), formats=["PNG"]) as image:
        if image.size != (_DRAWING_PX, _DRAWING_PX):
            raise OSError(f"found a drawing of {image.width}x{image.height}; needed {_DRAWING_PX}x{_DRAWING_PX}")
        return image.convert("1", dither=Image.Dither.NONE).tobytes()


BUILT_IN = BuiltIn(
    item=ITEM,
    rotations=(0, 90, 180, 270),
    source=SOURCE,
    licence=LICENCE,
    n_items=N_IMAGES,
    records=records,
    splits=splits,
)
