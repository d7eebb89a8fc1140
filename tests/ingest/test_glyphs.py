import hashlib
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from kshot.data.items.contract import item_size_bytes
from kshot.data.packed import SPLITS
from kshot.ingest import BUILT_IN, glyphs
from kshot.ingest.glyphs import SCRIPTS, Faces
from kshot.ingest.writer import Record

PIXELS_SHA256 = "0072936ac8b953edac95bdab0e8cf2ac73a96d4410afe46fc4674befb22a4a15"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(glyphs.records())


@pytest.fixture(scope="module")
def images(records: list[Record]) -> NDArray[np.float32]:
    """(classes, images per class, pixels) ink in 0..1"""
    stacked = np.stack([one.item for one in records]).astype(np.float32) / 255
    return stacked.reshape(-1, glyphs.IMAGES_PER_CLASS, item_size_bytes(glyphs.ITEM))


def test_pixels_are_the_same_on_every_machine(records: list[Record]) -> None:
    digest = hashlib.sha256()
    for one in records:
        digest.update(one.item.tobytes())
    assert digest.hexdigest() == PIXELS_SHA256


def test_a_second_run_draws_the_same_images(records: list[Record]) -> None:
    faces = Faces()
    script = SCRIPTS[-1]
    again = list(glyphs._class_records(script, script.characters[0], faces))
    first = [one for one in records if one.class_name == again[0].class_name]
    assert all(np.array_equal(one.item, other.item) for one, other in zip(first, again, strict=True))


def test_there_are_more_than_400_classes_of_20_distinct_images(records: list[Record]) -> None:
    counts = Counter(one.class_name for one in records)
    assert len(counts) >= 400
    assert set(counts.values()) == {20}
    assert len(records) == BUILT_IN["glyphs"].n_items
    assert len({one.id for one in records}) == len(records)
    assert len({one.item.tobytes() for one in records}) == len(records)


def test_whole_scripts_are_held_out_with_20_classes_each(records: list[Record]) -> None:
    splits = glyphs.splits()
    assert set(splits.by_class()) == {one.class_name for one in records}
    scripts = {split: {name.split("/")[0] for name in splits.of(split)} for split in SPLITS}
    assert not scripts["meta_train"] & (scripts["meta_val"] | scripts["meta_test"])
    assert not scripts["meta_val"] & scripts["meta_test"]
    assert all(len(script.characters) >= 20 for script in SCRIPTS if script.split != "meta_train")


def test_a_class_is_drawn_only_in_faces_that_hold_its_character(records: list[Record]) -> None:
    faces = Faces()
    for one in records[::7]:
        assert one.source in faces.holding(chr(int(one.class_name.split("U+")[1], 16)))


def test_every_image_has_ink_and_a_dark_border(images: NDArray[np.float32]) -> None:
    share = images.mean(axis=2)
    assert share.min() > 0.01
    assert share.max() < 0.6
    corners = images.reshape(-1, 28, 28)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 0.5).mean() < 0.01


def test_no_two_classes_look_alike() -> None:
    """By ink that does not overlap, in the one face that holds every class: 0 is identical, 1 is disjoint."""
    faces = Faces()
    characters = [character for script in SCRIPTS for character in script.characters]
    masters = np.stack([faces.master("DejaVuSans", character) for character in characters]).astype(np.float32)
    small = masters.reshape(len(masters), 32, 2, 32, 2).mean(axis=(2, 4)).reshape(len(masters), -1)
    ink = small.sum(axis=1)
    assert ink.min() > 0
    for number in range(1, len(small)):
        apart = np.abs(small[:number] - small[number]).sum(axis=1) / (ink[:number] + ink[number])
        assert apart.min() >= 0.15, (characters[number], characters[int(apart.argmin())])


def test_pixels_alone_solve_half_of_the_test_episodes_at_most(images: NDArray[np.float32]) -> None:
    """Nearest centroid on raw pixels, 5-way 1-shot: between 45% and 65%, chance being 20%."""
    test_classes = set(glyphs.splits().meta_test)
    names = [glyphs.class_name(script, character) for script in SCRIPTS for character in script.characters]
    held_out = images[[number for number, name in enumerate(names) if name in test_classes]]
    random = np.random.default_rng(0)
    correct = []
    for _ in range(200):
        classes = random.choice(len(held_out), 5, replace=False)
        order = random.permutation(glyphs.IMAGES_PER_CLASS)
        support, query = held_out[classes, order[0]], held_out[classes][:, order[1:]]
        distances = ((query[:, :, None] - support) ** 2).sum(axis=3)
        correct.append((distances.argmin(axis=2) == np.arange(5)[:, None]).mean())
    assert 0.45 < np.mean(correct) < 0.65
