"""The symbols that the loop of a model in use is shown with."""

import io

import numpy as np
import pytest
from PIL import Image

from bench.loop import KNOWN, NEW, SYMBOLS, drawn


@pytest.mark.parametrize("faces", [KNOWN, NEW])
def test_every_symbol_is_drawn_and_no_two_look_alike(faces: tuple[str, ...]) -> None:
    pictures = [drawn(symbol, faces, 1, stream=1)[0] for symbol in SYMBOLS]
    assert len(set(pictures)) == len(SYMBOLS)
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture)))
        assert pixels.shape == (28, 28)
        assert 10 < (pixels > 128).sum() < 400


def test_a_stream_gives_the_same_pictures_again_and_another_gives_others() -> None:
    assert drawn("#", KNOWN, 6, stream=1) == drawn("#", KNOWN, 6, stream=1)
    assert not set(drawn("#", KNOWN, 6, stream=1)) & set(drawn("#", KNOWN, 6, stream=2))
