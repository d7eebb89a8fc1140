"""Pictures of one channel that are deeper than 8 bits, such as X-rays, thermal and microscope pictures.

They hold 12 or 16 bits, 32-bit integers or floats, and use any part of that range. A dataset states the value range
that becomes 0..255, one for all of its pictures, so that a grey level means the same in each of them.

Shapes: H, W one picture, V distinct values.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kshot.data.items.formats import DEEP, open_checked
from kshot.errors import DataError

ValueRange = tuple[float, float]

_BLOCK_VALUES = 2**20
_HEADER_BYTES = 512
_PNM = re.compile(rb"P[25](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)\s")
_PERCENTILES = (0.001, 0.999)
_SIGNIFICANT = 2**12


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What a deep picture, or many of them, span: `values` (V,) ascending and how many pixels have each."""

    n_pictures: int
    lowest: float
    highest: float
    values: NDArray[np.float64]
    counts: NDArray[np.int64]


def deep_values(image: Image.Image) -> NDArray[Any]:
    """(H, W) what the file of a deep picture holds, which is not decoded yet. Raise DataError for NaN or infinity."""
    if image.format == "PPM" and image.mode == "I":
        return _pgm_values(image)
    unsigned = image.format == "TIFF" and image.mode == "I" and _is_uint32(image)
    values = np.asarray(image)
    return check_finite(values.view(np.uint32) if unsigned else values)


def check_finite(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        raise DataError(f"{n_bad} of {values.size} pixels are infinite or not a number; needed finite ones")
    return values


def stretched(values: NDArray[Any], to: ValueRange) -> tuple[NDArray[np.uint8], bool]:
    """(H, W) values with the range stretched to 0..255, and whether any lay outside of it and was clipped."""
    low, high = to
    levels = np.empty(values.shape, dtype=np.uint8)
    rows = max(_BLOCK_VALUES // max(values.shape[1], 1), 1)  # float64 of a whole picture could be half a gigabyte
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float64)
        levels[start : start + rows] = np.rint(np.clip((block - low) * (255 / (high - low)), 0, 255))
    return levels, bool(values.min() < low or values.max() > high)


def white_is_zero(image: Any) -> bool:
    """Of a deep TIFF, which Pillow does not turn into one whose black is 0, as it does of 8 bits."""
    return bool(image.format == "TIFF" and image.tag_v2.get(262) == 0)


def high_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W) of integers, the high of 16 bits; what datasets hold that were made before they could state a range."""
    return (np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1) >> 8).astype(np.uint8)


def may_be_deep(path: Path) -> bool:
    """Told by the first bytes of a file alone; a TIFF always may be."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            start = os.read(file, _HEADER_BYTES)
        finally:
            os.close(file)
    except OSError:
        return False
    if start.startswith(b"\x89PNG"):
        return start[24:26] == b"\x10\0"
    if start.startswith((b"P2", b"P5")):
        found = _PNM.match(start)
        return found is None or int(found[1]) > 255
    return start.startswith((b"II", b"MM", b"Pf"))


def spread_of(path: Path, *, counted: bool) -> Spread | None:
    """What a file spans, with its values counted when asked; None for what is not a deep picture or is damaged.

    Integers up to 16 bits are counted as they are, other values rounded to 12 significant bits.
    """
    try:
        with open_checked(path) as image:
            values = deep_values(image) if image.mode in DEEP else None
    except (
        Exception
    ):  # damaged pixels surface as a dozen unrelated types; reading the item refuses them with the reason
        return None
    if values is None:
        return None
    distinct, counts = np.unique(_rounded(values), return_counts=True) if counted else (np.empty(0), np.empty(0))
    return Spread(
        n_pictures=1,
        lowest=float(values.min()),
        highest=float(values.max()),
        values=distinct.astype(np.float64),
        counts=counts.astype(np.int64),
    )


def together(spreads: Iterable[Spread]) -> Spread | None:
    """One for all of them, added one by one; None when there are none."""
    total: Spread | None = None
    for one in spreads:
        total = one if total is None else _added(total, one)
    return total


def percentiles(spread: Spread) -> ValueRange:
    """The values below which 0.1 % and 99.9 % of all pixels lie."""
    below = np.cumsum(spread.counts)
    low, high = (int(np.searchsorted(below, part * below[-1])) for part in _PERCENTILES)
    return float(spread.values[low]), float(spread.values[high])


def range_text(value_range: ValueRange) -> str:
    return "..".join(f"{value:.15g}" for value in value_range)


def _added(one: Spread, other: Spread) -> Spread:
    values, at = np.unique(np.concatenate([one.values, other.values]), return_inverse=True)
    counts = np.zeros(len(values), dtype=np.int64)
    np.add.at(counts, at, np.concatenate([one.counts, other.counts]))
    return Spread(
        n_pictures=one.n_pictures + other.n_pictures,
        lowest=min(one.lowest, other.lowest),
        highest=max(one.highest, other.highest),
        values=values,
        counts=counts,
    )


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "iu" and values.min() >= -(2**16) and values.max() <= 2**16:
        return values
    part, exponent = np.frexp(values.astype(np.float64))
    rounded: NDArray[np.float64] = np.ldexp(np.rint(part * _SIGNIFICANT) / _SIGNIFICANT, exponent)
    return rounded


def _pgm_values(image: Any) -> NDArray[Any]:
    """Pillow scales the values of a PGM to 16 bits, and those of a binary one pixel by pixel in Python."""
    (tile,) = image.tile
    if tile.codec_name == "ppm_plain":
        unscaled: NDArray[Any] = np.rint(np.asarray(image) * (tile.args[1] / (2**16 - 1)))
        return unscaled.astype(np.uint16)
    image.fp.seek(tile.offset)
    content = image.fp.read(2 * image.width * image.height)
    if len(content) < 2 * image.width * image.height:
        raise DataError("damaged PPM image: image file is truncated")
    values: NDArray[Any] = np.frombuffer(content, dtype=">u2").reshape(image.height, image.width)
    return values


def _is_uint32(tiff: Any) -> bool:
    return bool(tiff.tag_v2.get(258) == (32,) and tiff.tag_v2.get(339, (1,)) == (1,))
