"""Which picture files are read, and the true reason why another is not.

PNG, JPEG (with MPO), WEBP, BMP, TIFF, PPM (with PGM, PBM and PFM) and GIF are read, one picture each. A file is judged
by its bytes and never by its name, and refused by its header before a pixel is decoded.

Two kinds of damage leave every pixel whole and are passed over: a wrong checksum of a chunk of a PNG that only
describes it, and a missing end of a JPEG.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from kshot.data.items.files import file_bytes
from kshot.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
MAX_PIXELS = 64_000_000

TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # one channel of more than 8 bits
_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *TRANSPARENT, *DEEP)

_PNG = b"\x89PNG\r\n\x1a\n"
_BEGINNINGS = {  # of a damaged file, which Pillow no longer recognises
    "PNG": (_PNG,),
    "JPEG": (b"\xff\xd8\xff",),
    "WEBP": (b"RIFF",),  # and WEBP at byte 8
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"),
    "GIF": (b"GIF8",),
}
_UNKNOWN_PIXELS = "unknown pixel mode"  # Pillow's words
_JPEG_END = b"\xff\xd9"
_CHANGES_PIXELS = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")

_CONVERT = "convert it to JPEG or PNG"
_KEEP_DEPTH = "convert it to PNG or TIFF, of 16 bits where it has more than 8"
_FOREIGN = (  # where the bytes stand, what they are, and the way on
    (4, b"ftyphei", "a HEIC picture, as phones write them", _CONVERT),
    (4, b"ftyphev", "a HEIC picture, as phones write them", _CONVERT),
    (4, b"ftypmif1", "a HEIC picture, as phones write them", _CONVERT),
    (4, b"ftypmsf1", "a HEIC picture, as phones write them", _CONVERT),
    (4, b"ftypavi", "an AVIF picture", _CONVERT),
    (4, b"ftypcrx", "a camera's raw picture (CR3)", _KEEP_DEPTH),
    (4, b"ftyp", "a video", "take single pictures from it, as JPEG or PNG"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture", _CONVERT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (0, b"\xff\x0a", "a JPEG XL picture", _CONVERT),
    (0, b"II\xbc", "a JPEG XR picture", _CONVERT),
    (0, b"8BPS", "a Photoshop file", _CONVERT),
    (0, b"gimp xcf", "a GIMP file", _CONVERT),
    (128, b"DICM", "a DICOM file", _KEEP_DEPTH),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw picture (RAF)", _KEEP_DEPTH),
    (0, b"IIRO", "a camera's raw picture (ORF)", _KEEP_DEPTH),
    (0, b"IIRS", "a camera's raw picture (ORF)", _KEEP_DEPTH),
    (0, b"IIU\0", "a camera's raw picture (RW2)", _KEEP_DEPTH),
    (0, b"v/1\x01", "an OpenEXR picture", _KEEP_DEPTH),
    (0, b"#?RADIANCE", "a Radiance HDR picture", _KEEP_DEPTH),
    (0, b"SIMPLE  =", "a FITS file", _KEEP_DEPTH),
    (344, b"n+1\0", "a NIfTI volume", "save its slices as PNG or TIFF"),
    (344, b"ni1\0", "a NIfTI volume", "save its slices as PNG or TIFF"),
    (0, b"PF\n", "a PFM picture in colour", _CONVERT),
    (0, b"P7\n", "a PAM picture", _CONVERT),
    (0, b"\0\0\1\0", "an icon", _CONVERT),
    (0, b"DDS ", "a DDS texture", _CONVERT),
    (0, b"%PDF", "a PDF", "save its pictures as JPEG or PNG"),
    (0, b"%!PS", "a PostScript file", _CONVERT),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file", _CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", "save it as PNG or TIFF"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its pictures as PNG or TIFF"),
    (0, b"MATLAB 5.0", "a MATLAB file", "save its pictures as PNG or TIFF"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"\x1f\x8b", "a gzip file", "unpack it"),
    (0, b"Rar!", "a RAR archive", "unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the picture", "git lfs pull"),
)
_FOREIGN_TEXTS = (
    (b"<svg", "an SVG drawing", "save it as PNG, in the size that is needed"),
    (b"<html", "a web page, as failed downloads leave them", "download the picture again"),
    (b"<!doctype html", "a web page, as failed downloads leave them", "download the picture again"),
)

_MAX_PAGES = 100  # of a TIFF that is one picture with its previews
_warnings_lock = Lock()  # warning filters belong to the whole process


def open_checked(source: Path | bytes) -> Image.Image:
    """Open a picture by its header alone; nothing is decoded yet. Raise DataError with the reason for a refusal."""
    content = file_bytes(source)
    try:
        with _without_warnings():  # Pillow warns of large sizes, which are checked below
            image = _opened(content)
            _choose_frame(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise DataError(_why_not(content)) from error
    except Exception as error:  # a damaged header surfaces as a dozen unrelated types
        raise DataError(f"damaged header: {reason(error)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    if image.mode not in _MODES:
        raise DataError(f"mode {image.mode} is not supported; needed grey, colour, CMYK or palette")
    return image


def size_and_mode(path: Path) -> tuple[tuple[int, int], str] | None:
    """Width and height in pixels and the mode, as the header says; None where it cannot be read."""
    try:
        with _without_warnings(), Image.open(path, formats=FORMATS) as image:
            return image.size, image.mode
    except Exception:  # a damaged header surfaces as a dozen unrelated types
        return None


def with_end(jpeg: bytes) -> bytes | None:
    """A JPEG that lacks only its end, with one; None where pixels are missing too.

    Decoders fill missing pixels with grey and do not say so. So other bytes are decoded in place of what is missing:
    where they change no pixel, none was missing. Restart markers among them reach a file that was cut before one.
    """
    if jpeg.endswith(_JPEG_END) or not _has_every_scan(jpeg):
        return None
    kept = jpeg[:-1] if jpeg.endswith(b"\xff") else jpeg
    noise = np.random.Generator(np.random.Philox(key=0)).integers(1, 255, 2**14, dtype=np.uint8).tobytes()
    restarts = [bytes([0xFF, 0xD0 + number]) + noise[:512] for number in range(8)]
    fillings = [noise, *(b"".join(restarts[first:] + restarts) for first in range(8))]
    try:
        pixels = _pixels(kept + _JPEG_END)
        whole = all(np.array_equal(pixels, _pixels(kept + filling + _JPEG_END)) for filling in fillings)
    except Exception:  # damage surfaces as a dozen unrelated types
        return None
    return kept + _JPEG_END if whole else None


def reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@contextmanager
def _without_warnings() -> Iterator[None]:
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        readable = _without_bad_descriptions(content) if content.startswith(_PNG) else content
        if readable == content:
            raise
        return Image.open(io.BytesIO(readable), formats=FORMATS)


def _pixels(content: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.asarray(image)


def _has_every_scan(jpeg: bytes) -> bool:
    """Whether the scans that begin in a progressive JPEG bring each coefficient of each component to its last bit."""
    at, needed, there = 2, 0, set[tuple[int, int]]()
    while at >= 0 and at + 10 <= len(jpeg):
        marker = jpeg[at + 1]
        if jpeg[at] != 0xFF or marker in (0, 0xFF, *range(0xD0, 0xD9)):
            at = jpeg.find(b"\xff", at + 1)
            continue
        if marker == 0xC2:
            needed = 64 * jpeg[at + 9]
        if marker == 0xDA:
            n_components = jpeg[at + 4]
            components = jpeg[at + 5 : at + 5 + 2 * n_components : 2]
            first, last, bits = jpeg[at + 5 + 2 * n_components : at + 8 + 2 * n_components].ljust(3, b"\1")
            if bits & 0x0F == 0:
                there.update((component, number) for component in components for number in range(first, last + 1))
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return len(there) >= needed


def _choose_frame(image: Image.Image) -> None:
    """Turn to the one picture of the file. A phone's JPEG may carry further ones (MPO); its first is the photo."""
    if image.format == "TIFF":
        _choose_page(image)
    elif image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(f"{getattr(image, 'n_frames', 'many')} frames, an animation; needed a single picture")


def _choose_page(tiff: Any) -> None:
    """Turn to the largest page, where the others are its previews: marked as such, or of at most half of its pixels."""
    if tiff.n_frames > _MAX_PAGES:
        raise DataError(f"{tiff.n_frames} pages; needed a single picture")
    pixels, is_marked = [], []
    for number in range(tiff.n_frames):
        tiff.seek(number)
        pixels.append(tiff.width * tiff.height)
        is_marked.append(bool(tiff.tag_v2.get(254, 0) & 5) or tiff.tag_v2.get(255, 1) == 2)
        if 50706 in tiff.tag_v2 or (is_marked[-1] and 330 in tiff.tag_v2):  # DNG, or a preview before SubIFDs
            raise DataError(f"a camera's raw picture; {_KEEP_DEPTH}")
    unmarked = [number for number in range(len(pixels)) if not is_marked[number]] or range(len(pixels))
    largest = max(unmarked, key=lambda number: pixels[number])
    full = sum(2 * pixels[number] > pixels[largest] for number in unmarked)
    if full > 1:
        raise DataError(f"{full} pages of full size; needed a single picture")
    tiff.seek(largest)


def _without_bad_descriptions(png: bytes) -> bytes:
    """The PNG without those chunks of a wrong checksum that do not change how it looks."""
    kept, at = [png[:8]], 8
    while at + 12 <= len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        end = at + 12 + size
        checksum = int.from_bytes(png[end - 4 : end], "big")
        describes = bool(name[0] & 0x20) and name not in _CHANGES_PIXELS
        if not (describes and end <= len(png) and zlib.crc32(png[at + 4 : end - 4]) != checksum):
            kept.append(png[at:end])
        at = end
    return b"".join([*kept, png[at:]])


def _why_not(content: bytes) -> str:
    for at, magic, name, way_on in _FOREIGN:
        if content[at : at + len(magic)] == magic:
            return f"{name}; {way_on}"
    text = content[:1024].lower()
    if text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        for tag, name, way_on in _FOREIGN_TEXTS:
            if tag in text:
                return f"{name}; {way_on}"
    for name, beginnings in _BEGINNINGS.items():
        if content.startswith(beginnings) and (name != "WEBP" or content[8:12] == b"WEBP"):
            complaint = _complaint(name, content)
            return _unread_tiff(content) if complaint == _UNKNOWN_PIXELS else f"damaged {name} image: {complaint}"
    return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"


def _unread_tiff(content: bytes) -> str:
    """Of an intact TIFF, whose pixels Pillow has no mode for."""
    tags = ImageFileDirectory_v2(content[: 16 if content[2] == ord("+") else 8])  # as long as the header of a BigTIFF
    file = io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    bits, n_channels = tags.get(258, (1,))[0], tags.get(277, 1)
    numbers = {1: "integers", 2: "signed integers", 3: "floats"}.get(tags.get(339, (1,))[0], "numbers")
    many = f"{n_channels} channels" if n_channels > 1 else "1 channel"
    return (
        f"a TIFF of {many} of {bits}-bit {numbers}; save it with 1 channel of 16 bits or 32-bit floats, or 3 of 8 bits"
    )


def _complaint(name: str, content: bytes) -> str:
    """What the reader of this format says of the file; Pillow itself only says that no reader took it."""
    factory, accepts = Image.OPEN[name]
    if accepts is not None and accepts(content[:16]) is not True:
        return "its header is not of this format"
    try:
        factory(io.BytesIO(content), "")
    except Exception as error:  # a damaged header surfaces as a dozen unrelated types
        return reason(error)
    return "its header is damaged"
