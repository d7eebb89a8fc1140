import base64
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import TypeAdapter

from kshot.data.items import ImageKind
from kshot.data.items.formats import open_checked
from kshot.data.items.image import to_item
from kshot.errors import DataError
from tests.ingest.toys import encoded, photo

COLOUR = ImageKind(image_size=16, channels=3)
GREY = ImageKind(image_size=16, channels=1)

Fit = Literal["crop", "pad", "stretch"]
every_fit = pytest.mark.parametrize("fit", get_args(Fit))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares its size and ends before its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_every_supported_format_becomes_an_item(file_format: str) -> None:
    decoded = COLOUR.read(encoded(Image.new("RGB", (40, 30), (200, 100, 50)), file_format))
    assert decoded.item.shape == (16, 16, 3)
    assert decoded.item.dtype == np.uint8
    assert decoded.original == {"width": 40, "height": 30, "mode": "RGB"}
    assert np.abs(decoded.item.astype(int) - (200, 100, 50)).max() <= 4


def test_a_file_is_read_like_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(encoded(photo(1)))
    from_file, from_bytes = COLOUR.read(tmp_path / "photo"), COLOUR.read(encoded(photo(1)))
    assert np.array_equal(from_file.item, from_bytes.item)


@pytest.mark.parametrize(
    ("image", "grey_level"),
    [
        (Image.new("1", (20, 20), 1), 255),
        (Image.new("L", (20, 20), 77), 77),
        (Image.new("LA", (20, 20), (10, 0)), 255),
        (Image.new("RGBA", (20, 20), (0, 0, 0, 51)), 204),
        (Image.fromarray(np.full((20, 20), 77 * 256 + 200, dtype=np.uint16)), 77),
        (Image.new("P", (20, 20), 3), 255),
    ],
    ids=["1", "L", "LA", "RGBA", "I;16", "P"],
)
@pytest.mark.parametrize("item", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_mode_is_converted_by_one_rule(image: Image.Image, grey_level: int, item: ImageKind) -> None:
    if image.mode == "P":
        image.putpalette([0, 0, 0] * 3 + [255, 255, 255])
    pixels = item.read(encoded(image)).item
    assert pixels.shape == item.shape
    assert (pixels == grey_level).all()


def test_a_palette_image_with_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 20, 30])
    assert (COLOUR.read(encoded(image, transparency=0)).item == 255).all()


def test_cmyk_becomes_rgb() -> None:
    pixels = COLOUR.read(encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG")).item
    assert (np.abs(pixels.astype(int) - (255, 0, 0)) <= 4).all()


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: what is on top goes right
    pixels = GREY.read(encoded(image, "JPEG", exif=exif)).item[:, :, 0]
    assert pixels[:, 9:].min() > 200
    assert pixels[:, :7].max() < 55


def test_the_shorter_side_is_fitted_and_the_middle_kept() -> None:
    stripes = np.zeros((16, 48), dtype=np.uint8)
    stripes[:, 16:32] = 255
    item = ImageKind(image_size=16, channels=1)
    assert (to_item(Image.fromarray(stripes), item) == 255).all()
    assert (to_item(Image.fromarray(stripes.T), item) == 255).all()
    wide = to_item(Image.fromarray(np.repeat(np.repeat(stripes, 3, 0), 3, 1)), item)
    assert wide[:, 1:-1].min() >= 250  # the antialiased edges may ring a little


def test_small_images_are_enlarged() -> None:
    assert (to_item(Image.new("L", (3, 2), 90), GREY) == 90).all()


@every_fit
def test_inversion_is_the_last_step(fit: Fit) -> None:
    plain, inverted = (ImageKind(image_size=16, channels=3, fit=fit, invert=invert) for invert in (False, True))
    image = photo(5)
    assert np.array_equal(to_item(image, inverted), 255 - to_item(image, plain))


@pytest.mark.parametrize("size", [(40, 30), (31, 47), (500, 375), (1, 90), (16, 17)], ids=str)
def test_a_crop_is_that_of_pillow(size: tuple[int, int]) -> None:
    image = photo(1, *size)
    expected = ImageOps.fit(image, (16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(to_item(image, COLOUR), np.asarray(expected))


def test_padding_keeps_the_whole_picture_and_repeats_its_edges_evenly() -> None:
    item = ImageKind(image_size=16, channels=1, fit="pad")
    rows = np.repeat(np.array([10, 90, 130, 250], dtype=np.uint8), 16).reshape(4, 16)
    expected = np.repeat(rows, [7, 1, 1, 7], axis=0)[:, :, None]
    assert np.array_equal(to_item(Image.fromarray(rows), item), expected)
    assert np.array_equal(to_item(Image.fromarray(rows.T), item), expected.transpose(1, 0, 2))
    odd = to_item(Image.fromarray(rows[:3]), item)[:, 0, 0].tolist()
    assert [odd.count(level) for level in (10, 90, 130)] == [7, 1, 8]


@pytest.mark.parametrize("invert", [False, True])
def test_a_blank_picture_is_blank_when_it_is_padded(invert: bool) -> None:
    item = ImageKind(image_size=16, channels=3, fit="pad", invert=invert)
    assert np.unique(to_item(Image.new("RGB", (40, 12), "white"), item)).tolist() == [0 if invert else 255]


def test_stretching_keeps_the_whole_picture_and_fills_the_square() -> None:
    item = ImageKind(image_size=16, channels=3, fit="stretch")
    expected = photo(1).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(to_item(photo(1), item), np.asarray(expected))


@every_fit
@pytest.mark.parametrize("size", [(3, 2), (1, 5000), (5000, 1), (17, 16)], ids=str)
def test_every_shape_of_picture_fits(fit: Fit, size: tuple[int, int]) -> None:
    item = ImageKind(image_size=16, channels=3, fit=fit)
    assert (to_item(Image.new("RGB", size, (9, 80, 200)), item) == (9, 80, 200)).all()


@every_fit
def test_a_square_picture_is_the_same_by_every_fit(fit: Fit) -> None:
    square = photo(1, 40, 40)
    assert np.array_equal(to_item(square, ImageKind(image_size=16, channels=3, fit=fit)), to_item(square, COLOUR))


@every_fit
@pytest.mark.parametrize("image_size", [224, 336, 518, 1024])
def test_items_may_be_as_large_as_encoders_of_photos_want_them(fit: Fit, image_size: int) -> None:
    item = ImageKind(image_size=image_size, channels=3, fit=fit)
    assert item.read(encoded(photo(1))).item.shape == (image_size, image_size, 3)


def test_a_fit_and_a_way_to_decode_are_stored_only_where_they_are_not_the_default() -> None:
    kinds = TypeAdapter(ImageKind)
    assert kinds.dump_python(COLOUR, mode="json") == {"image_size": 16, "channels": 3, "invert": False}
    other = ImageKind(image_size=16, channels=3, fit="pad", jpeg="scaled")
    assert kinds.dump_python(other, mode="json").items() >= {"fit": "pad", "jpeg": "scaled"}.items()
    assert kinds.validate_json(kinds.dump_json(other)) == other
    assert str(other) == "colour items of 16 pixels (padded to squares, JPEGs read quickly)"


def smooth_photo(mode: str, width: int, height: int) -> Image.Image:
    """A picture of large shapes that no turn leaves as it is."""
    levels = np.random.default_rng(3).integers(0, 256, (5, 5, 4), dtype=np.uint8)
    planes = [
        Image.fromarray(levels[:, :, number]).resize((width, height), Image.Resampling.BICUBIC) for number in range(4)
    ]
    return Image.merge(mode, planes[: len(Image.new(mode, (1, 1)).getbands())])


def full_and_scaled(content: bytes, **settings: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    full, scaled = (ImageKind(image_size=16, **settings, jpeg=jpeg).read(content) for jpeg in ("full", "scaled"))
    assert full.original == scaled.original
    return full.item, scaled.item


def assert_close(full: NDArray[np.uint8], scaled: NDArray[np.uint8]) -> None:
    """Close, of 255 grey levels, and yet not the same, so that a decoder which ignores the request is noticed."""
    difference = np.abs(full.astype(int) - scaled)
    assert 0 < difference.max() <= 20
    assert difference.mean() < 4


@every_fit
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(64, 96), (501, 375), (259, 523)], ids=str)
def test_a_jpeg_that_is_decoded_smaller_is_nearly_the_same(
    fit: Fit, channels: int, mode: str, size: tuple[int, int]
) -> None:
    content = encoded(smooth_photo(mode, *size), "JPEG", quality=95)
    assert_close(*full_and_scaled(content, channels=channels, fit=fit))


@every_fit
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_that_is_decoded_smaller_is_turned_upright_like_others(fit: Fit, orientation: int) -> None:
    """Of a size whose eighth has a last column and a last row that lie for the most part beyond the picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth_photo("RGB", 265, 257), "JPEG", quality=95, exif=exif)
    assert_close(*full_and_scaled(content, channels=3, fit=fit))


def test_the_first_picture_of_a_phone_photo_is_decoded_smaller() -> None:
    first, second = smooth_photo("RGB", 400, 300), photo(2)
    content = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert_close(*full_and_scaled(content, channels=3))


def test_a_jpeg_too_small_to_be_decoded_smaller_is_resized_by_the_shorter_filter() -> None:
    content = encoded(smooth_photo("RGB", 31, 31), "JPEG")
    scaled = ImageKind(image_size=16, channels=3, jpeg="scaled").read(content).item
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(scaled, np.asarray(image.resize((16, 16), Image.Resampling.HAMMING)))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_read_as_ever(file_format: str) -> None:
    full, scaled = full_and_scaled(encoded(smooth_photo("RGB", 400, 300), file_format), channels=3)
    assert np.array_equal(full, scaled)


def test_a_jpeg_that_is_decoded_smaller_is_refused_where_pixels_are_missing_and_not_for_its_end() -> None:
    item = ImageKind(image_size=16, channels=3, jpeg="scaled")
    content = encoded(smooth_photo("RGB", 400, 300), "JPEG")
    assert np.array_equal(item.read(content[:-2]).item, item.read(content).item)
    with pytest.raises(DataError, match="damaged JPEG"):
        item.read(content[: len(content) // 2])


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(file_format: str, part: float) -> None:
    whole = encoded(photo(3, 64, 64), file_format)
    with pytest.raises(DataError, match="damaged|not a PNG"):
        COLOUR.read(whole[: int(len(whole) * part)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"this is a text, whatever its name", "not a PNG, JPEG, WEBP, BMP, TIFF, PPM or GIF image"),
        (b"\x00" * 5000, "not a PNG"),
        (png_header(13_000, 13_000), "13000x13000 is more than 64000000 pixels"),
        (png_header(60_000, 60_000), "more than 64000000 pixels"),
        (png_header(0, 10), "damaged|not a PNG"),
        (encoded(Image.new("F", (9, 9)), "TIFF"), "the pixels are floats; need a dataset with a value range"),
    ],
    ids=["empty", "text", "zeros", "bomb", "huge bomb", "no width", "float"],
)
def test_what_is_no_usable_image_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        COLOUR.read(content)


def test_a_bomb_is_refused_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(DataError, match="13000x13000"):
        open_checked(png_header(13_000, 13_000))


def test_a_phone_photo_with_a_second_picture_counts_as_one() -> None:
    content = encoded(photo(1), "MPO", save_all=True, append_images=[photo(2)])
    assert COLOUR.read(content).item.shape == (16, 16, 3)


def test_a_huge_text_chunk_is_refused() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * 80_000_000, zip=True)
    with pytest.raises(DataError, match="damaged"):
        COLOUR.read(encoded(photo(1), pnginfo=info))


def test_a_file_over_the_byte_limit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kshot.data.items.files.MAX_FILE_BYTES", 100)
    (tmp_path / "big.png").write_bytes(encoded(photo(1)))
    with pytest.raises(DataError, match=r"the file has \d+ bytes; at most 100 are read"):
        COLOUR.read(tmp_path / "big.png")


def test_what_is_no_plain_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    for path in (tmp_path, tmp_path / "pipe.png", tmp_path / "broken.png"):
        with pytest.raises(DataError, match="not a plain file"):
            COLOUR.read(path)


def test_random_damage_is_refused_or_decoded_but_never_crashes() -> None:
    random = np.random.default_rng(0)
    originals = [encoded(photo(7, 24, 24), file_format) for file_format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")]
    outcomes = set()
    for trial in range(300):
        content = bytearray(originals[trial % 5])
        for position in random.integers(0, len(content), size=4):
            content[position] = random.integers(256)
        try:
            GREY.read(bytes(content))
            outcomes.add("decoded")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}


def test_nothing_is_printed_for_a_damaged_file(capfd: pytest.CaptureFixture[str]) -> None:
    whole = encoded(photo(3, 64, 64), "TIFF")
    with pytest.raises(DataError, match="damaged"):
        COLOUR.read(io.BytesIO(whole).read(len(whole) // 2))
    assert capfd.readouterr() == ("", "")


def shown(item: ImageKind, pixels: NDArray[np.uint8]) -> Image.Image:
    before, encoded = str(item.show(pixels)).split("data:image/png;base64,")
    assert before.startswith("<img ")
    return Image.open(io.BytesIO(base64.b64decode(encoded.split('"')[0], validate=True)))


@pytest.mark.parametrize(("item", "mode"), [(GREY, "L"), (COLOUR, "RGB")], ids=["grey", "colour"])
def test_an_image_is_shown_as_it_is(item: ImageKind, mode: str) -> None:
    pixels = item.example(1)[0]
    image = shown(item, pixels)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_a_large_image_is_shown_reduced() -> None:
    item = ImageKind(image_size=84, channels=3)
    assert shown(item, item.example(1)[0]).size == (42, 42)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            np.zeros((16, 16, 1), dtype=np.float32),
            "the pixels are float32, 0 to 0; need uint8, 0 to 255, or a dataset with a value range",
        ),
        (np.zeros((16,), dtype=np.uint8), r"shape \(16,\); need \(height, width"),
        (np.zeros((16, 3), dtype=np.uint8), r"shape \(16, 3\); need \(height, width"),
        (np.zeros((16, 16, 2), dtype=np.uint8), r"shape \(16, 16, 2\)"),
        (np.zeros((16, 0, 1), dtype=np.uint8), r"shape \(16, 0, 1\)"),
        ("a text", "found a text; needed an image file"),
    ],
)
def test_what_is_no_image_is_refused(bad: NDArray[Any] | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GREY.read(bad)


def test_pixels_are_read_like_a_file_of_them() -> None:
    from_pixels, from_file = COLOUR.read(np.asarray(photo(1))), COLOUR.read(encoded(photo(1)))
    assert np.array_equal(from_pixels.item, from_file.item)
    assert from_pixels.original == from_file.original
