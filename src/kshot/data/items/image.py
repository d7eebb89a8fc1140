"""The image kind, and one rule from any image to an item, for ingest and for serving alike.

1. The file is refused by its header before a pixel is decoded: format, frames, width times height.
2. The EXIF orientation is applied.
3. 16-bit grey keeps its high byte. A transparent image is laid on white.
4. Colour becomes grey (ITU-R 601 luma) for 1 channel, and grey or CMYK becomes RGB for 3.
5. The shorter side is resized to image_size (Lanczos, antialiased) and the middle of the longer is kept.
6. Values are inverted when the item says so.

Shapes: n items, H = W = image_size, C channels.
"""

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from kshot.data.items.contract import ItemSource, Read, Stored
from kshot.data.items.files import file_bytes
from kshot.data.items.thumbnails import difference_hash, thumbnails
from kshot.errors import DataError
from kshot.seeding import generator
from kshot.settings import STRICT

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 64_000_000

_SHOWN_PX = 64  # on a side, at most
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_TRANSPARENT, *_SIXTEEN_BIT)
_warnings_lock = Lock()  # warning filters belong to the whole process


@settings(frozen=True, kw_only=True, config=STRICT)
class ImageKind:
    """Pixels (image_size, image_size, channels) uint8, inverted when asked.

    The manifest keeps width, height and mode of each original, the mode as Pillow names it. A dataset.json
    without a kind holds images, and that of images is written without one: so were they before there were others.
    """

    original: ClassVar[Mapping[str, type[int] | type[str]]] = {"width": int, "height": int, "mode": str}

    image_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    invert: bool = False
    kind: Annotated[Literal["image"], Field(exclude_if=lambda kind: True)] = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __str__(self) -> str:
        colour = {1: "grey", 3: "colour"}[self.channels]
        return f"{'inverted ' * self.invert}{colour} items of {self.image_size} pixels"

    def read(self, source: ItemSource) -> Read:
        """From a file, its bytes or pixels (height, width, 1, 3 or 4) uint8, by the rule of this module."""
        if isinstance(source, str):
            raise DataError("found a text; needed an image file, the bytes of one, or pixels")
        if isinstance(source, np.ndarray):
            return self._converted(_from_pixels(source))
        with open_checked(source) as image:
            try:
                return self._converted(image)
            except Exception as error:  # damaged pixels and metadata surface as a dozen unrelated types
                raise DataError(f"damaged {image.format} image: {_reason(error)}") from error

    def tensor(self, stored: Tensor) -> Tensor:
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
        if isinstance(stored, Tensor):
            return torch.rot90(stored, quarters, dims=(-3, -2))
        return np.rot90(stored, quarters, axes=(-3, -2))

    def look(self, stored: Pixels) -> NDArray[np.uint64]:
        return difference_hash(stored)

    def sketch(self, stored: Pixels) -> Pixels:
        return thumbnails(stored)

    def _converted(self, image: Image.Image) -> Read:
        pixels = to_item(image, self)
        return Read(item=pixels, original={"width": image.width, "height": image.height, "mode": image.mode})


def open_checked(source: Path | bytes) -> Image.Image:
    """Open an image by its header alone; nothing is decoded yet. Raise DataError with the reason for a refusal."""
    encoded = file_bytes(source)
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large sizes, which are checked below
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise DataError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    except Exception as error:  # a damaged header surfaces as a dozen unrelated types
        raise DataError(f"damaged header: {_reason(error)}") from error
    _check_header(image)
    return image


def to_item(image: Image.Image, item: ImageKind) -> Pixels:
    """(image_size, image_size, channels) uint8 by the rule of this module."""
    upright = ImageOps.exif_transpose(image)
    plain = _opaque(_eight_bit(upright)).convert("L" if item.channels == 1 else "RGB")
    fitted = ImageOps.fit(plain, (item.image_size, item.image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted).reshape(item.shape)
    return 255 - pixels if item.invert else pixels


def _from_pixels(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise DataError(f"the pixels are {pixels.dtype}; need uint8, 0..255")
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"the pixels have shape {pixels.shape}; need (height, width, 1, 3 or 4), none of them 0")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    if image.mode not in _MODES:
        raise DataError(f"mode {image.mode} is not supported; needed grey, colour, CMYK or palette")
    # A phone's JPEG may carry a preview or depth map as further frames (MPO); its first is the photo.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError("more than one frame; needed a single image")


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _SIXTEEN_BIT:
        return image
    values = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
    return Image.fromarray((values >> 8).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return image
    ink = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
