"""Small records and images to fill datasets with."""

import io

import numpy as np
from PIL import Image

from kshot.data.items import ImageKind
from kshot.ingest.writer import Record

GREY8 = ImageKind(image_size=8, channels=1)


def record(identity: str, class_name: str = "a", group: str = "", value: int | None = None) -> Record:
    """An 8x8 grey record whose pixels follow from its id, or are all `value`."""
    seed = sum(identity.encode()) * 7919
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    if value is not None:
        pixels = np.full((8, 8, 1), value, dtype=np.uint8)
    return Record(
        id=identity,
        class_name=class_name,
        group=group,
        item=pixels,
        source="toy",
        original={"width": 8, "height": 8, "mode": "L"},
    )


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
