from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ingest.toys import photo


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Make folder/CLASS/NN.png for each class, of random colour photos."""

    def make(folder: str, *classes: str, images: int = 3, first: int = 0) -> Path:
        for class_number, class_name in enumerate(classes):
            target = tmp_path / folder / class_name
            target.mkdir(parents=True, exist_ok=True)
            for image in range(first, first + images):
                photo(1000 * class_number + image).save(target / f"{image:02d}.png")
        return tmp_path / folder

    return make
