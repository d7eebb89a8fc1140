"""How images look, roughly: small grey versions, and a hash that re-encoding or rescaling changes little.

The difference hash is that of Neal Krawetz, "Kind of Like That", 2013.

Shapes: n images, H,W,C one image.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_FLAT_LEVELS = 2  # a smaller step between neighbours is noise: flat areas stay 0 when a copy is re-encoded
_THUMBNAIL_SIZE = 32


def difference_hash(pixels: Pixels) -> NDArray[np.uint64]:
    """(n,) 64-bit hashes of `pixels` (n, H, W, C): where the image, at 8 x 9, gets brighter to the right."""
    cells = _cells(pixels, 8, 9)
    brighter = np.diff(cells, axis=2) > _FLAT_LEVELS * np.prod(pixels.shape[1:])
    return np.packbits(brighter.reshape(len(pixels), 64), axis=1).view(np.uint64).reshape(-1)


def thumbnails(pixels: Pixels) -> Pixels:
    """(n, T * T) grey versions of `pixels` (n, H, W, C), T at most 32."""
    rows, columns = (min(size, _THUMBNAIL_SIZE) for size in pixels.shape[1:3])
    cells = _cells(pixels, rows, columns) / np.prod(pixels.shape[1:])
    return np.round(cells).astype(np.uint8).reshape(len(pixels), rows * columns)


def _cells(pixels: Pixels, rows: int, columns: int) -> NDArray[np.float64]:
    """(n, rows, columns) area averages, times H * W * C: whole numbers, so equal on every machine."""
    grey = pixels[..., 0].astype(np.float64)
    for channel in range(1, pixels.shape[3]):
        grey += pixels[..., channel]
    if grey.shape[1:] == (rows, columns):
        return grey * (rows * columns)
    return np.asarray(_overlaps(grey.shape[1], rows) @ grey @ _overlaps(grey.shape[2], columns).T)


def _overlaps(size: int, bins: int) -> NDArray[np.float64]:
    """(bins, size) overlap of each bin with each pixel, where a pixel is `bins` long and a bin `size`."""
    pixel, bin_ = np.arange(size) * bins, np.arange(bins)[:, None] * size
    overlap = np.minimum(pixel + bins, bin_ + size) - np.maximum(pixel, bin_)
    return np.asarray(np.maximum(overlap, 0), dtype=np.float64)
