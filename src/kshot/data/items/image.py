"""One rule from any image to an item, for ingest and for serving alike, and the checks before it.

1. The file is refused by its header before a pixel is decoded: format, frames, width times height.
2. The EXIF orientation is applied.
3. 16-bit grey keeps its high byte. A transparent image is laid on white.
4. Colour becomes grey (ITU-R 601 luma) for 1 channel, and grey or CMYK becomes RGB for 3.
5. The shorter side is resized to image_size (Lanczos, antialiased) and the middle of the longer is kept.
6. Values are inverted when the item says so.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kshot.data.packed import ItemSpec, Pixels
from kshot.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 128 * 2**20

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_TRANSPARENT, *_SIXTEEN_BIT)
_warnings_lock = Lock()  # warning filters belong to the whole process


@dataclass(frozen=True, kw_only=True)
class DecodedItem:
    """pixels (H, W, channels); width, height and mode of the image as it was stored."""

    pixels: Pixels
    width: int
    height: int
    mode: str


def read_item(source: Path | bytes, item: ItemSpec) -> DecodedItem:
    """Check, decode and convert an image file or its bytes. Raise DataError with the reason for a refusal."""
    with open_checked(source) as image:
        try:
            pixels = to_item(image, item)
        except Exception as error:  # damaged pixels and metadata surface as a dozen unrelated types
            raise DataError(f"damaged {image.format} image: {_reason(error)}") from error
        return DecodedItem(pixels=pixels, width=image.width, height=image.height, mode=image.mode)


def open_checked(source: Path | bytes) -> Image.Image:
    """Open an image by its header alone; nothing is decoded yet. Raise DataError with the reason for a refusal."""
    encoded = source if isinstance(source, bytes) else _read(source)
    if not encoded:
        raise DataError("the file has 0 bytes")
    if len(encoded) > MAX_FILE_BYTES:
        raise DataError(f"the file has {len(encoded)} bytes; at most {MAX_FILE_BYTES} are read")
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


def to_item(image: Image.Image, item: ItemSpec) -> Pixels:
    """(image_size, image_size, channels) uint8 by the rule of this module."""
    upright = ImageOps.exif_transpose(image)
    plain = _opaque(_eight_bit(upright)).convert("L" if item.channels == 1 else "RGB")
    fitted = ImageOps.fit(plain, (item.image_size, item.image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted).reshape(item.shape)
    return 255 - pixels if item.invert else pixels


def _read(path: Path) -> bytes:
    if not path.is_file():  # opening a pipe would wait for its writer
        raise DataError("not a plain file")
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


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
