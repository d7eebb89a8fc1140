"""The image kind, and one rule from any image to an item, for ingest and for serving alike.

1. The file is refused by its header before a pixel is decoded (`formats`): format, frames, width times height.
2. The values of one channel of more than 8 bits (`depth`) become 0..255 by the value range of the dataset; without one,
   integers keep the high of 16 bits and floats are refused. Colour of 16 bits per channel keeps the high 8.
3. The EXIF orientation is applied. A transparent image is laid on white.
4. Colour becomes grey (ITU-R 601 luma) for 1 channel, and grey or CMYK becomes RGB for 3.
5. The picture becomes a square of image_size (Lanczos, antialiased) by the `fit` of the item.
6. Values are inverted when the item says so.

Where the item says so, a JPEG is decoded by a half, a quarter or an eighth, as far as both sides keep image_size, and
step 5 takes a shorter filter (Hamming). That changes an item less than a JPEG of quality 90 has changed the picture.

Shapes: n items, H = W = image_size, C channels.
"""

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass as settings

from kshot.data.items.contract import ItemSource, Read, Stored
from kshot.data.items.depth import (
    ValueRange,
    check_finite,
    deep_values,
    high_bytes,
    range_text,
    stretched,
    white_is_zero,
)
from kshot.data.items.files import file_bytes
from kshot.data.items.formats import DEEP, TRANSPARENT, open_checked, reason, with_end
from kshot.data.items.thumbnails import difference_hash, thumbnails
from kshot.errors import DataError
from kshot.seeding import generator
from kshot.settings import STRICT

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from torch import Tensor

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_SHOWN_PX = 64  # on a side, at most
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
JPEGS = ("JPEG", "MPO")  # an MPO begins with one, as many phones write it
_HIGH_BYTE_KEPT = "are deeper than 8 bits: of 16 bits the high 8 are kept, because the dataset has no value range"
_HIGH_BITS_KEPT = "have 16 bits per channel in colour, of which the high 8 are kept"


def _ascending(value_range: ValueRange | None) -> ValueRange | None:
    if value_range is not None and not (value_range[0] < value_range[1] and all(map(math.isfinite, value_range))):
        raise ValueError("needed two finite numbers, the lower first")
    return value_range


@settings(frozen=True, kw_only=True, config=STRICT)
class ImageKind:
    """Pixels (image_size, image_size, channels) uint8, inverted when asked.

    `value_range` is what becomes 0..255 of pictures deeper than 8 bits; a dataset of 8-bit pictures needs none.

    `fit` is how a picture that is not square becomes one. "crop" resizes the shorter side to image_size and keeps the
    middle of the longer. "pad" resizes the longer side and repeats the outermost pixels of the shorter on both sides:
    so paper stays paper, inverted or not, a blank picture stays blank, and no bar that pictures share makes them look
    alike. "stretch" resizes both sides.

    `jpeg` "scaled" decodes large JPEGs at a fraction of their size and resizes JPEGs by a shorter filter, which is
    several times faster and changes pixels less than their compression has. It belongs to the dataset, as the other
    settings do, so that ingest and serving see the same pixels.

    The manifest keeps width, height and mode of each original, the mode as Pillow names it. A dataset.json
    without a kind holds images, and that of images is written without one: so were they before there were others.
    """

    original: ClassVar[Mapping[str, type[int] | type[str]]] = {"width": int, "height": int, "mode": str}

    image_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    invert: bool = False
    value_range: Annotated[
        ValueRange | None, AfterValidator(_ascending), Field(exclude_if=lambda value_range: value_range is None)
    ] = None
    fit: Annotated[Literal["crop", "pad", "stretch"], Field(exclude_if=lambda fit: fit == "crop")] = "crop"
    jpeg: Annotated[Literal["full", "scaled"], Field(exclude_if=lambda jpeg: jpeg == "full")] = "full"
    kind: Annotated[Literal["image"], Field(exclude_if=lambda kind: True)] = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __str__(self) -> str:
        colour = {1: "grey", 3: "colour"}[self.channels]
        details = [] if self.fit == "crop" else [{"pad": "padded", "stretch": "stretched"}[self.fit] + " to squares"]
        if self.value_range is not None:
            details.append(f"values {range_text(self.value_range)} stretched")
        if self.jpeg == "scaled":
            details.append("JPEGs read quickly")
        more = f" ({', '.join(details)})" if details else ""
        return f"{'inverted ' * self.invert}{colour} items of {self.image_size} pixels{more}"

    def read(self, source: ItemSource) -> Read:
        """From a file, its bytes or pixels, by the rule of this module.

        Pixels are uint8 (height, width) or (height, width, 1, 3 or 4). Numbers of another type are those of a deep
        picture, of one channel, where the dataset has a value range; nothing is cast without one. Of a file, values
        outside of the range are clipped; pixels with such values, or whose several values all become one level, are
        refused: they are most likely of another unit.
        """
        if isinstance(source, str):
            raise DataError("found a text; needed an image file, the bytes of one, or pixels")
        if isinstance(source, np.ndarray):
            return self._read_pixels(source)
        return self._read_file(file_bytes(source))

    def tensor(self, stored: "Tensor") -> "Tensor":
        """uint8 (..., H, W, C) -> float32 (..., C, H, W) in 0..1.

        The memory stays in the order H, W, C, which is channels-last to a convolution.
        """
        return stored.float().mul_(1 / 255).movedim(-1, -3)

    def show(self, stored: NDArray[Any]) -> "Markup":
        from markupsafe import Markup

        image = Image.fromarray(stored[:, :, 0] if self.channels == 1 else stored)
        buffer = io.BytesIO()
        image.reduce(max(1, -(-self.image_size // _SHOWN_PX))).save(buffer, format="PNG", optimize=True)
        style = "pixelated" if self.image_size < _SHOWN_PX else "smooth"
        encoded = base64.b64encode(buffer.getvalue()).decode()
        return Markup('<img class="{}" src="data:image/png;base64,{}" alt="">').format(style, encoded)

    def facts(self, stored: NDArray[Any]) -> "pd.DataFrame":
        """mean, std, min and max of the pixels of each item, in grey levels, 0 to 255."""
        import pandas as pd

        flat = stored.reshape(len(stored), -1)
        total = flat.sum(axis=1, dtype=np.int64)  # whole numbers, so that the facts are the same on every machine
        squares = np.square(flat, dtype=np.uint32).sum(axis=1, dtype=np.int64)
        n = flat.shape[1]
        return pd.DataFrame(
            {
                "mean": total / n,
                "std": np.sqrt((squares * n - total**2) / n**2),
                "min": flat.min(axis=1).astype(np.float64),
                "max": flat.max(axis=1).astype(np.float64),
            }
        )

    def example(self, n: int) -> Pixels:
        return generator(0, "example", "image").integers(0, 256, (n, *self.shape), dtype=np.uint8)

    def turned(self, stored: Stored, quarters: int) -> Stored:
        if isinstance(stored, np.ndarray):
            return np.rot90(stored, quarters, axes=(-3, -2))
        return stored.rot90(quarters, dims=(-3, -2))

    def look(self, stored: Pixels) -> NDArray[np.uint64]:
        return difference_hash(stored)

    def sketch(self, stored: Pixels) -> Pixels:
        return thumbnails(stored)

    def _read_file(self, content: bytes) -> Read:
        with open_checked(content) as image:
            try:
                return self._converted(image)
            except DataError:
                raise
            except Exception as error:  # damaged pixels and metadata surface as a dozen unrelated types
                whole = with_end(content) if image.format in JPEGS else None
                if whole is None:
                    raise DataError(f"damaged {image.format} image: {reason(error)}") from error
        return self._read_file(whole)

    def _converted(self, image: Image.Image) -> Read:
        plain = image
        width, height = image.size  # before it may be decoded smaller
        notes: tuple[str, ...] = (_HIGH_BITS_KEPT,) if _keeps_high_bits(image) else ()
        if image.mode in DEEP:
            levels, notes = self._levels(image)
            plain = _turned(Image.fromarray(levels), image)
        pixels = to_item(plain, self)
        return Read(item=pixels, original={"width": width, "height": height, "mode": image.mode}, notes=notes)

    def _levels(self, image: Image.Image) -> tuple[Pixels, tuple[str, ...]]:
        """(H, W) uint8 of a deep picture."""
        if self.value_range is not None:
            levels, notes = self._stretched(deep_values(image))
            return 255 - levels if white_is_zero(image) else levels, notes
        if image.mode == "F":
            raise DataError(
                "the pixels are floats; need a dataset with a value range; "
                "ingest under a new --name, which finds the range, or with --range LOW:HIGH"
            )
        return high_bytes(image), (_HIGH_BYTE_KEPT,)

    def _stretched(self, values: NDArray[Any]) -> tuple[Pixels, tuple[str, ...]]:
        assert self.value_range is not None
        levels, clipped = stretched(values, self.value_range)
        text = range_text(self.value_range)
        deep = f"are deeper than 8 bits: values {text} are stretched to 0..255 (--range LOW:HIGH sets it)"
        return levels, (deep, f"hold values outside {text}, which are clipped") if clipped else (deep,)

    def _read_pixels(self, pixels: NDArray[Any]) -> Read:
        _check_pixels(pixels, self.value_range)
        grey = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        if pixels.dtype == np.uint8:
            return self._converted(Image.fromarray(grey))
        levels, notes = self._stretched(check_finite(grey))
        self._check_spread(grey, levels)
        height, width = grey.shape
        return Read(
            item=to_item(Image.fromarray(levels), self),
            original={"width": width, "height": height, "mode": "F" if grey.dtype.kind == "f" else "I"},
            notes=notes,
        )

    def _check_spread(self, values: NDArray[Any], levels: Pixels) -> None:
        """Of pixels, which say nothing of their unit. Raise DataError where it is not that of the value range."""
        assert self.value_range is not None
        low, high = self.value_range
        lowest, highest = values.min(), values.max()
        if lowest < low or highest > high or (lowest < highest and levels.min() == levels.max()):
            raise DataError(
                f"the pixels are {_spread(values)}; the dataset's range is {range_text(self.value_range)}; "
                f"need values of that range{', of more than one level' * bool(low <= lowest and highest <= high)}"
            )


def to_item(image: Image.Image, item: ImageKind) -> Pixels:
    """(image_size, image_size, channels) uint8 of a picture of at most 8 bits, by the rule of this module."""
    is_quick = item.jpeg == "scaled" and image.format in JPEGS
    extent = _decoded_smaller(image, item.image_size) if is_quick else image.size
    upright = _upright(image)
    plain = _opaque(upright)
    colour = "L" if item.channels == 1 else "RGB"
    plain = plain if plain.mode == colour else plain.convert(colour)
    resampling = Image.Resampling.HAMMING if is_quick else Image.Resampling.LANCZOS
    pixels = _fitted(plain, _box(extent, upright.size, _orientation(image)), item, resampling).reshape(item.shape)
    return 255 - pixels if item.invert else pixels


def _decoded_smaller(image: Image.Image, image_size: int) -> tuple[float, float]:
    """Make a JPEG that is not decoded yet be decoded smaller, where it is large. The width and height to expect.

    They are fractions where the last column or row of the smaller picture lies in part beyond the picture.
    """
    smaller = image.draft(None, (image_size, image_size))
    return image.size if smaller is None else smaller[1][2:]


def _box(extent: tuple[float, float], size: tuple[int, int], orientation: int) -> Box:
    """Of a picture that had `extent` from the upper left corner, now that it is turned upright and of `size`."""
    width, height = extent if orientation < 5 else extent[::-1]
    left = size[0] - width if orientation in (2, 3, 6, 7) else 0
    top = size[1] - height if orientation in (3, 4, 7, 8) else 0
    return left, top, left + width, top + height


def _fitted(image: Image.Image, box: Box, item: ImageKind, resampling: Image.Resampling) -> Pixels:
    """(image_size, image_size) or (image_size, image_size, 3) of what lies in the box."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if item.fit == "pad":
        scale = item.image_size / max(width, height)
        inner = max(round(width * scale), 1), max(round(height * scale), 1)
        return _padded(np.asarray(image.resize(inner, resampling, box)), item.image_size)
    if item.fit == "crop":
        side = min(width, height)
        left, top = left + (width - side) * 0.5, top + (height - side) * 0.5
        box = left, top, left + side, top + side
    return np.asarray(image.resize((item.image_size, item.image_size), resampling, box))


def _padded(pixels: Pixels, side: int) -> Pixels:
    missing = [side - length for length in pixels.shape[:2]]
    width = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, width, mode="edge")


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a PNG may have its orientation behind its pixels; a TIFF applies its own
    return _turned(image, image)


def _turned(image: Image.Image, original: Image.Image) -> Image.Image:
    """By the EXIF orientation of the original."""
    turn = _TURNS.get(_orientation(original))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """By EXIF, 1 to 8; 1 is upright."""
    try:
        orientation = image.getexif().get(0x0112, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:  # EXIF that cannot be read says nothing of the pixels
        return 1


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return image
    ink = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")


def _keeps_high_bits(image: Image.Image) -> bool:
    """Whether Pillow brings this picture, which is not decoded yet, to 8 bits per channel by itself."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    arguments = [tile.args for tile in getattr(image, "tile", ())]
    return any(";16" in str(one) or (image.format == "PPM" and _maxval(one) > 255) for one in arguments)


def _maxval(arguments: Any) -> int:
    """Of the arguments of the reader of PPM: the raw mode alone, or with the largest value."""
    return arguments[1] if isinstance(arguments, tuple) else 255


def _spread(pixels: NDArray[Any]) -> str:
    return f"{pixels.dtype}, {pixels.min():.6g} to {pixels.max():.6g}"


def _check_pixels(pixels: NDArray[Any], value_range: ValueRange | None) -> None:
    if pixels.dtype.kind not in "uif":
        raise DataError(f"the pixels are {pixels.dtype}; need uint8, 0 to 255")
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    is_row = pixels.ndim == 2 and pixels.shape[1] in (1, 3, 4)  # of the pixels of one picture
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or channels not in (1, 3, 4) or is_row:
        raise DataError(
            f"the pixels have shape {pixels.shape}; need (height, width) or (height, width, 1, 3 or 4), none of them 0"
        )
    if pixels.dtype == np.uint8:
        return
    found = f"the pixels are {_spread(pixels)}"
    if value_range is None:
        raise DataError(f"{found}; need uint8, 0 to 255, or a dataset with a value range (kshot ingest --range)")
    if channels > 1:
        raise DataError(f"{found}, in {channels} channels; need uint8, 0 to 255: a value range is for one channel")
