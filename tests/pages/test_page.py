import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from PIL import Image

from kshot.pages.page import figure_uri, render


def content(uri: str, kind: str) -> bytes:
    prefix = f"data:{kind};base64,"
    assert uri.startswith(prefix)
    return base64.b64decode(uri.removeprefix(prefix), validate=True)


def line_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [1, 0], label="falling")
    axes.legend()
    return figure


@pytest.mark.parametrize(("kind", "media_type"), [("svg", "image/svg+xml"), ("png", "image/png")])
def test_the_same_figure_is_the_same_bytes(kind, media_type):
    first, second = (content(figure_uri(line_figure(), kind), media_type) for _ in range(2))
    assert first == second
    assert first.lstrip().startswith(b"<?xml" if kind == "svg" else b"\x89PNG")


def test_a_figure_has_no_ground_and_an_ink_for_light_and_dark():
    picture = Image.open(io.BytesIO(content(figure_uri(line_figure(), "png"), "image/png"))).convert("RGBA")
    pixels = np.asarray(picture).reshape(-1, 4)
    assert pixels[0, 3] == 0
    opaque = pixels[pixels[:, 3] == 255][:, :3].astype(int)
    assert 40 < opaque.sum(axis=1).min()
    assert opaque.sum(axis=1).max() < 720


def test_a_name_missing_from_the_context_is_an_error():
    with pytest.raises(UndefinedError, match="is undefined"):
        render("validate.html.j2", name="glyphs")
