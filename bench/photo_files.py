"""Photos that nobody took: JPEG files as a camera's, the same on every machine with the same Pillow."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kshot.seeding import generator

LONGER_PX, SHORTER_PX = 500, 375
_QUALITY = 90
_OCTAVES = ((4, 60), (16, 30), (64, 14), (256, 7))  # cells along the longer side, and grey levels of deviation
_GRAIN = 4  # grey levels of the sensor's noise


def write_photos(folder: Path, n_photos: int, per_class: int) -> int:
    """Write them as folder/CLASS/NUMBER.jpg, in folders of `per_class`; return their bytes in all."""
    n_bytes = 0
    for number in range(n_photos):
        class_folder = folder / f"class-{number // per_class:04d}"
        class_folder.mkdir(parents=True, exist_ok=True)
        n_bytes += (class_folder / f"{number:06d}.jpg").write_bytes(jpeg(number, number // per_class))
    return n_bytes


def jpeg(number: int, class_number: int) -> bytes:
    """Clouds of colour with shapes and grain; shapes and colours are those of the class. One of three is upright."""
    size = (SHORTER_PX, LONGER_PX) if number % 3 == 0 else (LONGER_PX, SHORTER_PX)
    of_class, of_photo = generator(0, "photo class", class_number), generator(0, "photo", number)
    clouds = of_class.uniform(70, 185, 3) + sum(_octaves(of_photo, size))
    image = Image.fromarray(np.clip(clouds, 0, 255).astype(np.uint8))
    _draw_shapes(image, of_class, of_photo)
    grain = of_photo.normal(0, _GRAIN, (size[1], size[0], 1))
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _octaves(random: np.random.Generator, size: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """(H, W, 3) noise of ever smaller cells."""
    for cells, deviation in _OCTAVES:
        coarse = random.normal(0, deviation, (3, max(2, cells * size[1] // LONGER_PX), cells)).astype(np.float32)
        channels = [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in coarse]
        yield np.stack([np.asarray(one) for one in channels], axis=-1)


def _draw_shapes(image: Image.Image, of_class: np.random.Generator, of_photo: np.random.Generator) -> None:
    """A few of a kind and colour that the class has, where and as large as the photo has them."""
    pen = ImageDraw.Draw(image)
    colours = of_class.integers(0, 256, (3, 3))
    corners = int(of_class.integers(2, 8))
    for colour in colours:
        x, y = of_photo.uniform(0.2, 0.8, 2) * image.size
        radius, turn = of_photo.uniform(30, 90), of_photo.uniform(0, 360)
        fill = (int(colour[0]), int(colour[1]), int(colour[2]))
        if corners == 2:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            pen.regular_polygon((x, y, radius), corners, rotation=turn, fill=fill)
