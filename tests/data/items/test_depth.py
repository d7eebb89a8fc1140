import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from kshot.data.items import ImageKind
from kshot.data.items.depth import may_be_deep, percentiles, spread_of, together
from kshot.errors import DataError
from tests.ingest.toys import encoded

PLAIN = ImageKind(image_size=16, channels=1)
RANGED = ImageKind(image_size=16, channels=1, value_range=(0, 4080))
GREY = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
TWELVE = GREY.astype(np.uint16) * 16


def binary_pgm(values: NDArray[Any], largest: int) -> bytes:
    return b"P5\n# by a camera\n%d %d\n%d\n" % (*values.shape[::-1], largest) + values.astype(">u2").tobytes()


def plain_pgm(values: NDArray[Any], largest: int) -> bytes:
    numbers = b" ".join(str(value).encode() for value in values.ravel())
    return b"P2\n%d %d\n%d\n" % (*values.shape[::-1], largest) + numbers


def uint32_tiff(values: NDArray[Any]) -> bytes:
    """Pillow writes signed values; the tag SampleFormat is changed from 2 to 1."""
    tiff = encoded(Image.fromarray(values.astype(np.int32)), "TIFF")
    return tiff.replace(b"\x53\x01\x03\x00\x01\x00\x00\x00\x02", b"\x53\x01\x03\x00\x01\x00\x00\x00\x01")


TWELVE_BITS = {
    "PNG": encoded(Image.fromarray(TWELVE)),
    "TIFF": encoded(Image.fromarray(TWELVE), "TIFF"),
    "integers": encoded(Image.fromarray(TWELVE.astype(np.int32)), "TIFF"),
    "floats": encoded(Image.fromarray(TWELVE.astype(np.float32)), "TIFF"),
    "PFM": encoded(Image.fromarray(TWELVE.astype(np.float32)), "PPM"),
    "PGM of 16 bits": encoded(Image.fromarray(TWELVE), "PPM"),
    "PGM of 12 bits": binary_pgm(TWELVE, 4095),
    "plain PGM": plain_pgm(TWELVE, 4095),
}
every_file = pytest.mark.parametrize("content", TWELVE_BITS.values(), ids=TWELVE_BITS)


@every_file
def test_the_value_range_becomes_0_to_255_in_every_format(content: bytes) -> None:
    read = RANGED.read(content)
    assert np.array_equal(read.item[:, :, 0], GREY)
    assert read.notes == ("are deeper than 8 bits: values 0..4080 are stretched to 0..255 (--range LOW:HIGH sets it)",)


@every_file
def test_what_a_file_spans_is_what_it_holds(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "deep").write_bytes(content)
    assert may_be_deep(tmp_path / "deep")
    spread = spread_of(tmp_path / "deep", counted=True)
    assert spread is not None
    assert (spread.lowest, spread.highest) == (TWELVE.min(), TWELVE.max())
    values, counts = np.unique(TWELVE, return_counts=True)
    assert np.array_equal(spread.values, values)
    assert np.array_equal(spread.counts, counts)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1)], ids=["without channel", "with channel"])
def test_an_array_is_converted_like_a_file_of_it(dtype: Any, shape: tuple[int, ...]) -> None:
    assert np.array_equal(RANGED.read(TWELVE.astype(dtype).reshape(shape)).item[:, :, 0], GREY)


def test_pictures_of_8_bits_stay_as_they_are_in_a_dataset_with_a_range() -> None:
    for source in (encoded(Image.fromarray(GREY)), GREY, GREY[:, :, None]):
        read = RANGED.read(source)
        assert np.array_equal(read.item[:, :, 0], GREY)
        assert read.notes == ()


def test_values_outside_the_range_are_clipped_and_noted() -> None:
    read = RANGED.read(encoded(Image.fromarray(TWELVE * 2)))
    assert np.array_equal(read.item[:, :, 0], np.minimum(GREY.astype(int) * 2, 255))
    assert read.notes[1:] == ("hold values outside 0..4080, which are clipped",)


def test_a_range_may_be_negative_and_fractional() -> None:
    kind = ImageKind(image_size=16, channels=1, value_range=(-1.5, 1))
    values = (GREY / 255 * 2.5 - 1.5).astype(np.float32)
    assert np.array_equal(kind.read(encoded(Image.fromarray(values), "TIFF")).item[:, :, 0], GREY)


def test_unsigned_values_of_32_bits_stay_positive() -> None:
    kind = ImageKind(image_size=16, channels=1, value_range=(0, 2**32 - 1))
    values = GREY.astype(np.uint32) * np.uint32(16843009)
    assert np.array_equal(kind.read(uint32_tiff(values)).item[:, :, 0], GREY)


def test_a_tiff_whose_white_is_zero_looks_as_viewers_show_it() -> None:
    tiff = encoded(Image.fromarray(TWELVE), "TIFF")
    inverted = tiff.replace(struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    assert inverted != tiff
    assert np.array_equal(RANGED.read(inverted).item[:, :, 0], 255 - GREY)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pictures_with_values_that_are_no_numbers_are_refused(bad: float) -> None:
    values = TWELVE.astype(np.float32)
    values[3, 3] = bad
    for source in (encoded(Image.fromarray(values), "TIFF"), values):
        with pytest.raises(DataError, match="1 of 256 pixels are infinite or not a number; needed finite ones"):
            RANGED.read(source)


def test_without_a_range_integers_keep_the_high_byte_and_floats_are_refused() -> None:
    read = PLAIN.read(TWELVE_BITS["PNG"])
    assert np.array_equal(read.item[:, :, 0], TWELVE >> 8)
    assert read.notes[0].startswith("are deeper than 8 bits: of 16 bits the high 8 are kept")
    with pytest.raises(DataError, match="the pixels are floats; need a dataset with a value range"):
        PLAIN.read(TWELVE_BITS["floats"])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (GREY / 255, "the pixels are float64, 0 to 1; need uint8, 0 to 255, or a dataset with a value range"),
        (GREY.astype(np.int64), "the pixels are int64, 0 to 255; need uint8"),
        (TWELVE, "the pixels are uint16, 0 to 4080; need uint8"),
        (GREY > 100, "the pixels are bool; need uint8"),
    ],
)
def test_no_array_is_cast_silently(pixels: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PLAIN.read(pixels)


def test_deep_colour_is_refused_as_an_array() -> None:
    with pytest.raises(DataError, match="uint16, 0 to 4080, in 3 channels; need uint8, 0 to 255"):
        RANGED.read(np.repeat(TWELVE[:, :, None], 3, axis=2))


def test_an_orientation_is_applied_to_a_deep_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = RANGED.read(encoded(Image.fromarray(TWELVE), exif=exif)).item[:, :, 0]
    assert np.array_equal(turned, np.rot90(GREY, -1))


def test_pictures_of_8_bits_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    image = Image.fromarray(GREY)
    for name in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF"):
        (tmp_path / name).write_bytes(encoded(image, name))
        assert not may_be_deep(tmp_path / name)
    assert not may_be_deep(tmp_path / "none")


def test_percentiles_leave_out_the_thousandth_at_each_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(1000, 2000, (100, 100)).astype(np.uint16) for _ in range(3)]
    pictures[0][0, :5], pictures[2][0, :5] = 65535, 0
    for number, values in enumerate(pictures):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    found = together(spread for path in sorted(tmp_path.iterdir()) if (spread := spread_of(path, counted=True)))
    assert found is not None and found.n_pictures == 3
    everything = np.sort(np.concatenate([values.ravel() for values in pictures]))
    assert percentiles(found) == (everything[29], everything[29969])


def test_the_percentiles_of_floats_are_near(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(0, 1e-3, (200, 200)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    spread = spread_of(tmp_path / "a.tif", counted=True)
    assert spread is not None
    np.testing.assert_allclose(percentiles(spread), np.percentile(values, [0.1, 99.9]), rtol=5e-3)


def test_a_range_is_stored_only_where_there_is_one() -> None:
    kinds = TypeAdapter(ImageKind)
    assert kinds.dump_python(PLAIN, mode="json") == {"image_size": 16, "channels": 1, "invert": False}
    assert kinds.dump_python(RANGED, mode="json")["value_range"] == [0, 4080]
    assert kinds.validate_json(kinds.dump_json(RANGED)) == RANGED
    assert str(RANGED) == "grey items of 16 pixels (values 0..4080 stretched)"


@pytest.mark.parametrize("value_range", [(5.0, 5.0), (5.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_is_two_finite_numbers_the_lower_first(value_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="finite number"):
        ImageKind(image_size=16, channels=1, value_range=value_range)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.linspace(0, 0.99, 64, dtype=np.float32),
            r"float32, 0 to 0\.99; the dataset's range is 0\.\.4095; need .* of",
        ),
        (
            np.linspace(0, 32000, 64).astype(np.int16),
            r"int16, 0 to 32000; the dataset's range is 0\.\.4095; need values",
        ),
        (np.linspace(-1, 9, 64), r"float64, -1 to 9; the dataset's range is 0\.\.4095; need values"),
    ],
)
def test_an_array_of_another_unit_than_the_range_is_refused(values: NDArray[Any], message: str) -> None:
    kind = ImageKind(image_size=8, channels=1, value_range=(0, 4095))
    with pytest.raises(DataError, match=message):
        kind.read(values.reshape(8, 8))
    assert not kind.read(np.zeros((8, 8), dtype=np.float32)).item.any()
