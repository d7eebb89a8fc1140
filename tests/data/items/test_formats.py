import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kshot.data.items import ImageKind
from kshot.errors import DataError
from tests.ingest.toys import encoded

COLOUR = ImageKind(image_size=16, channels=3)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    """Smooth, with a little noise, so that lossy formats keep it roughly."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None] * np.array([1, 0.5, -0.7])
    noise = np.random.default_rng(0).normal(0, 10, (height, width, 3))
    return Image.fromarray(np.clip(128 + 100 * waves + noise, 0, 255).astype(np.uint8))


def with_chunk(png: bytes, name: bytes, body: bytes, checksum: int) -> bytes:
    """The PNG with one more chunk behind its header."""
    return png[:33] + struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum) + png[33:]


@pytest.mark.parametrize(
    ("file_format", "mode"), [("PPM", "RGB"), ("PPM", "L"), ("PPM", "1"), ("GIF", "P"), ("GIF", "L")]
)
def test_formats_of_known_datasets_are_read_like_a_png_of_them(file_format: str, mode: str) -> None:
    image = picture().convert(mode)
    expected = COLOUR.read(encoded(image)).item
    assert np.array_equal(COLOUR.read(encoded(image, file_format)).item, expected)


def test_a_plain_pgm_of_few_grey_levels_is_read_in_full_contrast() -> None:
    assert np.unique(COLOUR.read(b"P2\n# made by hand\n2 2\n15\n0 15\n15 0\n").item).max() == 255


@pytest.mark.parametrize(("file_format", "n_frames"), [("PNG", 3), ("WEBP", 3), ("GIF", 3)])
def test_an_animation_is_refused(file_format: str, n_frames: int) -> None:
    frames = [picture().rotate(90 * number) for number in range(n_frames)]
    content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=f"{n_frames} frames, an animation; needed a single picture"):
        COLOUR.read(content)


@pytest.mark.parametrize("first", ["picture", "preview"])
def test_a_tiff_with_a_preview_is_the_picture_in_it(first: str) -> None:
    pages = [picture(), picture().resize((16, 16))]
    pages = pages if first == "picture" else pages[::-1]
    read = COLOUR.read(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert read.original == {"width": 64, "height": 64, "mode": "RGB"}
    assert np.array_equal(read.item, COLOUR.read(encoded(picture())).item)


def test_a_page_that_is_marked_as_reduced_is_a_preview_whatever_its_size() -> None:
    content = io.BytesIO()
    picture().save(content, "TIFF", save_all=True, append_images=[picture()], tiffinfo={254: 0})
    marked = content.getvalue()
    entry = struct.pack("<HHII", 254, 4, 1, 0)
    assert marked.count(entry) == 2
    at = marked.rindex(entry)
    marked = marked[:at] + struct.pack("<HHII", 254, 4, 1, 1) + marked[at + len(entry) :]
    assert COLOUR.read(marked).original["width"] == 64


def test_a_tiff_of_several_pages_of_full_size_is_refused() -> None:
    content = encoded(picture(), "TIFF", save_all=True, append_images=[picture(60, 64), picture()])
    with pytest.raises(DataError, match="3 pages of full size; needed a single picture"):
        COLOUR.read(content)


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 1},
    "fine": {"quality": 95, "subsampling": 0},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_without_its_end_is_read_and_one_without_any_of_its_pixels_is_not(options: dict[str, object]) -> None:
    whole = encoded(picture(), "JPEG", **options)
    for n_missing in (1, 2):
        assert np.array_equal(COLOUR.read(whole[:-n_missing]).item, COLOUR.read(whole).item)
    for n_missing in range(3, len(whole) - 700, 7):
        with pytest.raises(DataError, match="damaged JPEG image: image file is truncated|damaged header"):
            COLOUR.read(whole[:-n_missing])


@pytest.mark.parametrize("options", [JPEGS["progressive"], JPEGS["restarts"]], ids=["progressive", "restarts"])
def test_a_jpeg_that_is_cut_where_a_marker_would_follow_is_refused(options: dict[str, object]) -> None:
    whole = encoded(picture(), "JPEG", **options)
    scans = whole.index(b"\xff\xda")
    markers = [at for at in range(scans + 2, len(whole) - 3) if whole[at] == 0xFF and whole[at + 1] != 0]
    assert len(markers) >= 5
    for at in markers:
        with pytest.raises(DataError, match="damaged JPEG image: image file is truncated"):
            COLOUR.read(whole[:at])


def test_a_png_whose_text_has_a_wrong_checksum_is_read() -> None:
    png = encoded(picture())
    damaged = with_chunk(png, b"tEXt", b"a\0b", 0)
    assert np.array_equal(COLOUR.read(damaged).item, COLOUR.read(png).item)


@pytest.mark.parametrize("name", [b"tRNS", b"IHDR"])
def test_a_png_whose_look_has_a_wrong_checksum_is_refused_with_the_reason(name: bytes) -> None:
    png = encoded(picture())
    damaged = png[:29] + b"\0\0\0\0" + png[33:] if name == b"IHDR" else with_chunk(png, name, b"\0" * 6, 0)
    with pytest.raises(DataError, match=f"damaged PNG image: .*checksum in b'{name.decode()}'"):
        COLOUR.read(damaged)


def test_exif_that_cannot_be_read_does_not_refuse_the_picture() -> None:
    jpeg = encoded(picture(), "JPEG")
    body = b"Exif\0\0" + b"no TIFF header"
    damaged = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
    assert np.array_equal(COLOUR.read(damaged).item, COLOUR.read(jpeg).item)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_to_every_format(file_format: str, orientation: int) -> None:
    """A white corner goes from the top left to where the orientation says that a viewer shows it."""
    image = Image.new("L", (32, 32), 0)
    image.paste(255, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = ImageKind(image_size=16, channels=1).read(encoded(image, file_format, exif=exif)).item[:, :, 0]
    corners = {"top left": shown[:6, :6], "top right": shown[:6, 10:]}
    corners |= {"bottom left": shown[10:, :6], "bottom right": shown[10:, 10:]}
    white = [name for name, part in corners.items() if part.mean() > 200]
    at = [
        "top left",
        "top right",
        "bottom right",
        "bottom left",
        "top left",
        "top right",
        "bottom right",
        "bottom left",
    ]
    assert white == [at[orientation - 1]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic" + b"\0" * 90, "a HEIC picture, as phones write them; convert it to JPEG or PNG"),
        (encoded(picture(), "AVIF"), "an AVIF picture; convert it"),
        (encoded(picture(), "JPEG2000"), "a JPEG 2000 picture; convert it"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', "an SVG drawing; save it as PNG"),
        (b"<!DOCTYPE html><html>", "a web page, as failed downloads leave them; download the picture again"),
        (b"8BPS\0\1", "a Photoshop file; convert it"),
        (b"\0" * 128 + b"DICM", "a DICOM file; convert it to PNG or TIFF, of 16 bits"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in place of the picture; git lfs pull"),
        (b"\x93NUMPY\1\0", "a NumPy array; save it as PNG or TIFF"),
        (encoded(picture())[:60], "damaged"),
        (encoded(picture(), "GIF")[:40], "damaged GIF image"),
        (encoded(picture(), "TIFF")[:40], "damaged"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not a PNG, JPEG, WEBP, BMP, TIFF, PPM or GIF image"),
    ],
    ids=["HEIC", "AVIF", "JP2", "SVG", "HTML", "PSD", "DICOM", "LFS", "NumPy", "PNG", "GIF", "TIFF", "sound"],
)
def test_a_refusal_says_what_the_file_is(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        COLOUR.read(content)


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}], ids=["DNG", "preview before SubIFDs"])
def test_the_preview_of_a_camera_raw_is_not_taken_for_the_picture(tags: dict[int, object]) -> None:
    with pytest.raises(DataError, match="a camera's raw picture; convert it to PNG or TIFF"):
        COLOUR.read(encoded(picture(), "TIFF", tiffinfo=tags))


def test_colour_of_16_bits_per_channel_keeps_the_high_8_and_says_so() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    values = np.full((16, 16, 3), 77 * 256 + 200, dtype=">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    for content in (png, b"P6 16 16 65535\n" + np.full((16, 16, 3), 77 * 257, dtype=">u2").tobytes()):
        read = COLOUR.read(content)
        assert (read.item == 77).all()
        assert read.notes == ("have 16 bits per channel in colour, of which the high 8 are kept",)


def test_a_tiff_of_numbers_that_are_not_read_is_not_called_damaged() -> None:
    tiff = encoded(Image.new("F", (16, 16)), "TIFF")
    wider = tiff.replace(struct.pack("<HHIHH", 258, 3, 1, 32, 0), struct.pack("<HHIHH", 258, 3, 1, 64, 0))
    assert wider != tiff
    with pytest.raises(DataError, match="a TIFF of 1 channel of 64-bit floats; save it with 1 channel of 16 bits"):
        COLOUR.read(wider)
