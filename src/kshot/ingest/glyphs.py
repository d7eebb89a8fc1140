"""The embedded dataset: characters of many scripts, drawn from the fonts that matplotlib ships.

Every byte is the same on every machine: FreeType rasterises in integers, distortions are drawn with
counter-based bits and applied in fixed-point arithmetic.

Shapes: I images per class, M master pixels per side, S samples per side (two for each of the P pixels).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kshot.data.items.image import ImageKind, Pixels
from kshot.data.packed import Splits
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.writer import Record
from kshot.seeding import random_bits, stream_key

Int32 = NDArray[np.int32]

ITEM = ImageKind(image_size=28, channels=1)
IMAGES_PER_CLASS = 20
N_IMAGES = 16_720
SOURCE = "glyphs: characters drawn from the DejaVu and STIX fonts"
LICENCE = "images: Apache-2.0; fonts: Bitstream Vera and DejaVu licence, STIX font licence"

_SEED = 1
_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
_MASTER_PX, _GLYPH_PX, _SAMPLES = 64, 42, 2 * ITEM.image_size
_PATCHES = 4  # spline patches per side of the elastic field
_CONTROLS = _PATCHES + 3

# Half-widths of the uniform distortions. Lengths are in master pixels.
_HALF_TURN = 0.1  # tangent of half the angle: 0.1 is 11.4 degrees
_SCALE, _SHEAR, _SHIFT_PX, _ELASTIC_PX = 0.14, 0.18, 2.0, 7.0


@dataclass(frozen=True, kw_only=True)
class Script:
    """A script is a group; its characters are given as inclusive ranges of hexadecimal code points."""

    name: str
    split: str
    ranges: str

    @property
    def characters(self) -> tuple[str, ...]:
        return tuple(character for part in self.ranges.split() for character in _range(part))


# Of the letters that DejaVu Sans holds upright and bold; left out, for every pair that looks alike when
# centred and scaled (Latin A and Cyrillic A, o and O), is one of the two. tests/ingest/test_glyphs.py holds it.
SCRIPTS = (
    Script(
        name="Latin",
        split="meta_train",
        ranges=(
            "31-39 42-44 46-48 4B 4D-4E 50-54 57 59-5A 61-62 64-66 6A-6B 6D 70-72 74 78-79 C6 D8 DE-DF "
            "E6 F0 F8 FE 138 141-142 14B 152-153 181 184 186-188 18A-18B 18F 191-195 198 19B-19D "
            "1A2-1A4 1A6-1A7 1AA-1AB 1AE 1B1-1B4 1B6-1BA 1BC-1BF 1C1-1C2 1DD 1F6-1F7 21C 220-225 "
            "234-236 238-23C 23E-242 246-247 24A-24B 24F"
        ),
    ),
    Script(
        name="IPA",
        split="meta_train",
        ranges=(
            "250 255-258 25A 25D-260 263-265 267-268 26A-26E 271-272 274 276-283 285-288 28A 28D-291 "
            "293-297 29A-29B 29D-2A0 2A3-2A4 2A6-2AF"
        ),
    ),
    Script(
        name="Greek",
        split="meta_train",
        ranges=(
            "372-373 377 37C-37D 393 39E 3A8-3A9 3B1-3B6 3B9 3BC-3BE 3C0 3C2-3C9 3CF 3D7-3DA 3DD-3E3 3E6-3EE 3FA-3FB"
        ),
    ),
    Script(
        name="Cyrillic",
        split="meta_train",
        ranges=(
            "402 409-40B 40F 414 416 41A-41B 427 429-42B 42E-42F 432-434 437 43B 43D 442 444 446 "
            "448-44C 44E-44F 452 459-45B 460 462-471 474 478-481 48A-48B 48D 490-491 493-496 498-49A "
            "49F-4AC 4B1-4B7 4B9-4BA 4BC 4BE 4C3 4C5-4C8 4CA 4CC-4CD 4E1 4F6 4FA-4FB 4FD-4FE 501-509 "
            "50B 50D-50F 513-519 520-521 524-525"
        ),
    ),
    Script(
        name="Arabic",
        split="meta_train",
        ranges=(
            "621 628-62C 62E-637 639-63A 641-64A 679 67B-67D 681 688-68B 68D-68F 691-693 695 698 69A "
            "69E 6A0-6A2 6A4-6A5 6A8-6AA 6AD-6AF 6B2-6B6 6B8-6BB 6BD-6BE 6C6-6C7 6CE 6D0"
        ),
    ),
    Script(
        name="Lao",
        split="meta_train",
        ranges=("E81-E82 E84 E87-E88 E8A E8D E94-E97 E99-E9E EA1-EA3 EA5 EA7 EAA-EAB EAD-EB0 EC0-EC4 ED1-ED4 ED6-ED9"),
    ),
    Script(
        name="Asomtavruli",
        split="meta_train",
        ranges="10A0-10B8 10BC-10C5",
    ),
    Script(
        name="Syllabics",
        split="meta_train",
        ranges=(
            "1405 140A 141E 1433 1438 1455 1467-146B 146F 1472 1485-1489 148B 148D 1490 14A3 14A7 14C0 "
            "14C2 14C4 14C7 14D3 14D5 14D7 14DA 14EC-14ED 14EF 14F1 14F4 1510-1511 1513 1515 1526 1528 "
            "152A 152D 1542-1543 1546 154B 1552-1553 1555 1557 1559 155E-1561 1574-1575 1577 1579 157B "
            "157F 1581 1583 158F 1591 1593 15A0 15A2 15A4 15AE 166F-1671 1673 1675"
        ),
    ),
    Script(
        name="Nko",
        split="meta_val",
        ranges="7C0-7C7 7C9 7CB-7CF 7D1-7DA 7DC-7DF 7E1-7E5",
    ),
    Script(
        name="Nuskhuri",
        split="meta_val",
        ranges="2D00-2D15 2D17-2D19 2D1C-2D1D 2D1F 2D21-2D25",
    ),
    Script(
        name="Tifinagh",
        split="meta_val",
        ranges=("2D30-2D31 2D33-2D34 2D37-2D46 2D49 2D4B-2D4D 2D50 2D52-2D53 2D55-2D56 2D58 2D5B-2D5C 2D61-2D64"),
    ),
    Script(
        name="Armenian",
        split="meta_test",
        ranges="531-541 543-54A 54C-54E 552-556 561-565 567-571 573-57D 57F 581 583-586",
    ),
    Script(
        name="Georgian",
        split="meta_test",
        ranges="10D0-10D4 10D6-10E7 10E9-10EB 10ED 10EF-10F2 10F4-10FA",
    ),
    Script(
        name="Hebrew",
        split="meta_test",
        ranges="5D0-5D6 5D8 5DA-5DE 5E0 5E2-5EA",
    ),
)


def splits() -> Splits:
    """Whole scripts are held out, so that no test character has a relative in training."""
    names: dict[str, list[str]] = {}
    for script in SCRIPTS:
        names.setdefault(script.split, []).extend(class_name(script, character) for character in script.characters)
    return Splits(
        meta_train=tuple(names["meta_train"]), meta_val=tuple(names["meta_val"]), meta_test=tuple(names["meta_test"])
    )


def records() -> Iterator[Record]:
    """Every image of the dataset, class by class, in a fixed order."""
    faces = Faces()
    for script in SCRIPTS:
        for character in script.characters:
            yield from _class_records(script, character, faces)


def class_name(script: Script, character: str) -> str:
    return f"{script.name}/U+{ord(character):04X}"


class Faces:
    """Fonts that matplotlib ships, by their names, and the characters that each really holds."""

    def __init__(self, names: Sequence[str] = _FACES) -> None:
        import matplotlib
        from matplotlib.ft2font import FT2Font

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self._paths = {face: str(folder / f"{face}.ttf") for face in names}
        self._held = {face: frozenset(FT2Font(path).get_charmap()) for face, path in self._paths.items()}
        self._measures = {face: self._font(face, _MASTER_PX) for face in names}

    def holding(self, character: str) -> tuple[str, ...]:
        return tuple(face for face, held in self._held.items() if ord(character) in held)

    def master(self, face: str, character: str) -> Pixels:
        """(M, M) the character centred, its longer side scaled to about the same length in every face."""
        left, top, right, bottom = map(int, self._measures[face].getbbox(character))
        size = _MASTER_PX * _GLYPH_PX // max(right - left, bottom - top, 1)
        drawn = Image.new("L", (2 * _MASTER_PX, 2 * _MASTER_PX))
        corner = ((_MASTER_PX // 2) - left * size // _MASTER_PX, (_MASTER_PX // 2) - top * size // _MASTER_PX)
        ImageDraw.Draw(drawn).text(corner, character, fill=255, font=self._font(face, size))
        left, top, right, bottom = drawn.getbbox() or (0, 0, 0, 0)
        x, y = (left + right - _MASTER_PX) // 2, (top + bottom - _MASTER_PX) // 2
        return np.asarray(drawn.crop((x, y, x + _MASTER_PX, y + _MASTER_PX)))

    def _font(self, face: str, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(self._paths[face], size, layout_engine=ImageFont.Layout.BASIC)


def _class_records(script: Script, character: str, faces: Faces) -> Iterator[Record]:
    held = faces.holding(character)
    used = [held[image % len(held)] for image in range(IMAGES_PER_CLASS)]
    masters = {face: faces.master(face, character) for face in dict.fromkeys(used)}
    images = distorted(np.stack([masters[face] for face in used]), ord(character))
    name = class_name(script, character)
    for number, (pixels, face) in enumerate(zip(images, used, strict=True)):
        yield Record(
            id=f"{name}/{number:02d}",
            class_name=name,
            group=script.name,
            item=pixels[:, :, None],
            source=face,
            original={"width": ITEM.image_size, "height": ITEM.image_size, "mode": "L"},
        )


def distorted(masters: Pixels, stream: int) -> Pixels:
    """(I, M, M) -> (I, P, P): each master under its own affine map and elastic field, of bits keyed by `stream`."""
    draws = _uniform(stream, len(masters), 6 + 2 * _CONTROLS * _CONTROLS)
    samples = _bilinear(masters, *_source_coordinates(draws))
    rows = samples[:, ::2] + samples[:, 1::2]
    pixels = rows[:, :, ::2] + rows[:, :, 1::2]
    return ((pixels + 2**17) >> 18).astype(np.uint8)


def _uniform(stream: int, n_images: int, n_draws: int) -> NDArray[np.float64]:
    """(I, draws) multiples of 2**-24 in [-1, 1)."""
    bits = random_bits(stream_key(_SEED, "glyphs", stream), np.arange(n_images)[:, None], np.arange(n_draws))
    return (bits >> np.uint64(39)).astype(np.float64) * 2.0**-24 - 1.0


def _source_coordinates(draws: NDArray[np.float64]) -> tuple[Int32, Int32]:
    """Where in the master each sample lies: row and column (I, S, S), in 256ths of a master pixel."""
    turn, scale_y, scale_x, shear, shift_y, shift_x = draws[:, :6].T[:, :, None]
    turn, shear = turn * _HALF_TURN, shear * _SHEAR
    cosine, sine = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)  # no libm: exact everywhere
    step = (2 * np.arange(_SAMPLES) + 1 - _SAMPLES) * (_MASTER_PX * 128.0 / _SAMPLES)
    y, x = step * (1 + scale_y * _SCALE), step * (1 + scale_x * _SCALE)
    centre = (_MASTER_PX - 1) * 128.0
    row_of_y = _whole((cosine - sine * shear) * y + (centre + shift_y * (_SHIFT_PX * 256)))
    column_of_y = _whole((sine + cosine * shear) * y + (centre + shift_x * (_SHIFT_PX * 256)))
    field = _elastic(draws[:, 6:].reshape(-1, 2, _CONTROLS, _CONTROLS))
    rows = row_of_y[:, :, None] - _whole(sine * x)[:, None] + field[:, 0]
    columns = column_of_y[:, :, None] + _whole(cosine * x)[:, None] + field[:, 1]
    return rows, columns


def _elastic(draws: NDArray[np.float64]) -> Int32:
    """(I, 2, controls, controls) -> (I, 2, S, S) smooth displacements in 256ths of a master pixel."""
    weights, total = _spline_weights()
    field = weights @ np.rint(draws * (_ELASTIC_PX * 256)) @ weights.T  # whole numbers: exact in any order of summation
    return _whole(field / total**2)


def _whole(values: NDArray[np.float64]) -> Int32:
    return np.rint(values).astype(np.int32)


def _spline_weights() -> tuple[NDArray[np.float64], int]:
    """(S, controls) weights of the uniform cubic B-spline as whole numbers, and the sum of each row."""
    samples_a_patch = _SAMPLES // _PATCHES
    patch, within = np.divmod(np.arange(_SAMPLES), samples_a_patch)
    n, u = 2 * samples_a_patch, 2 * within + 1
    quarters = ((n - u) ** 3, 3 * u**3 - 6 * n * u**2 + 4 * n**3, -3 * u**3 + 3 * n * u**2 + 3 * n**2 * u + n**3, u**3)
    weights = np.zeros((_SAMPLES, _CONTROLS))
    for offset, quarter in enumerate(quarters):
        weights[np.arange(_SAMPLES), patch + offset] = quarter
    return weights, 6 * n**3


def _bilinear(masters: Pixels, rows: Int32, columns: Int32) -> Int32:
    """(I, S, S) master values times 65536; outside a master is its (blank) border."""
    limit = (_MASTER_PX - 1) * 256 - 1
    rows, columns = np.clip(rows, 0, limit), np.clip(columns, 0, limit)
    flat = masters.ravel().astype(np.int32)
    image = np.arange(len(masters), dtype=np.int32)[:, None, None]
    first = (image * _MASTER_PX + (rows >> 8)) * _MASTER_PX + (columns >> 8)
    down, right = rows & 255, columns & 255
    above = flat.take(first) * (256 - right) + flat.take(first + 1) * right
    first += _MASTER_PX
    below = flat.take(first) * (256 - right) + flat.take(first + 1) * right
    blended: Int32 = above * (256 - down) + below * down
    return blended


def _range(part: str) -> str:
    first, _, last = part.partition("-")
    return "".join(map(chr, range(int(first, 16), int(last or first, 16) + 1)))


BUILT_IN = BuiltIn(item=ITEM, source=SOURCE, licence=LICENCE, n_items=N_IMAGES, records=records, splits=splits)
