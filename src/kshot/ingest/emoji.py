"""Emoji in ten styles of drawing: a benchmark of recognising a thing as another artist draws it.

Classes are the names that at least nine of the styles draw, their group is the Unicode subgroup, and the style is the
domain: the id of an item is GROUP/NAME/STYLE. Left out are clock faces, squares, circles and diamonds, which differ in
a hand or a colour alone, a star that one style draws as the asterisk, and drawings that two names share in a style. No
skin tone is drawn by nine styles.

The drawings are SVG in packages of npm. The style of Mozilla has names of its own, and so is in few classes.

Two more datasets hold styles out: `emoji-unseen` has the drawings in two styles alone, `emoji-seen` those in the rest.
Both have the splits of the whole, so the held-out classes of `emoji-unseen` are new in class and in style to what is
trained on `emoji-seen`.
"""

import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from kshot.data.items.image import ImageKind, to_item
from kshot.data.packed import Splits
from kshot.errors import DataError
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.npm import Package, folder_with
from kshot.ingest.splits import SeededSplits, assign_splits
from kshot.ingest.writer import Record
from kshot.workspace import Workspace

ITEM = ImageKind(image_size=84, channels=3)
FOLDER_VARIABLE = "KSHOT_EMOJI"
LEAST_STYLES = 9
N_ITEMS = 7_803
UNSEEN_STYLES = ("openmoji", "twemoji")  # every class has both, and no other is of the same project
N_UNSEEN = 2 * 842
SOURCE = "emoji of ten styles, npm packages @iconify-json/*"
LICENCE = (
    "fluent-emoji-flat, fluent-emoji-high-contrast: MIT; noto, noto-v1, fxemoji: Apache-2.0; twemoji, emojione, "
    "emojione-monotone: CC-BY-4.0; openmoji, emojione-v1: CC-BY-SA-4.0; groups of emojibase-data: MIT"
)
_LEFT_OUT = re.compile(
    r".*(-oclock|-thirty)|.*\b(square|circle|diamond)\b.*|circled-m|eight-pointed-star|flag-(?!in-hole).*|.*skin-tone.*"
)


_STYLES = {
    style: Package(name=f"@iconify-json/{style}", version=version, sha256=sha256)
    for style, version, sha256 in (
        ("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
        ("emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e"),
        ("emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3"),
        ("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
        ("fluent-emoji-high-contrast", "1.2.6", "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"),
        ("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
        ("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        ("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
        ("openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
        ("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    )
}
_NAMES = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)


def records(styles: Collection[str] = tuple(_STYLES)) -> Iterator[Record]:
    """Every drawing in `styles`, by group, name and style. Raise DataError when the packages cannot be had."""
    for class_name, drawn in _classes().items():
        for style, svg in drawn.items():
            if style in styles:
                yield _record(class_name, style, svg)


def splits() -> Splits:
    """Drawn by class, from seed 1: a class is in one split, whatever the styles."""
    return assign_splits({name: name.split("/")[0] for name in _classes()}, given={}, plan=SeededSplits())


@cache
def _classes() -> dict[str, dict[str, str]]:
    packages = (*_STYLES.values(), _NAMES)
    folder = folder_with(packages, kept=Workspace.nearest().packages, variable=FOLDER_VARIABLE)
    styles = {style: drawings(package.read_json(folder, "icons.json")) for style, package in _STYLES.items()}
    return classes(styles, groups(folder))


def classes(styles: Mapping[str, Mapping[str, str]], group_of: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The drawing of each style by GROUP/NAME, of every name that enough of the styles draw, in alphabetical order."""
    drawn = Counter(name for style in styles.values() for name in style)
    names = [name for name in drawn if name in group_of and not _LEFT_OUT.fullmatch(name)]
    names = [name for name in names if drawn[name] >= LEAST_STYLES]
    shared = Counter(
        (style, drawings[name]) for style, drawings in styles.items() for name in names if name in drawings
    )
    own = {
        f"{group_of[name]}/{name}": {
            style: drawings[name]
            for style, drawings in styles.items()
            if name in drawings and shared[style, drawings[name]] == 1
        }
        for name in names
    }
    return {name: own[name] for name in sorted(own) if len(own[name]) >= LEAST_STYLES}


def groups(folder: Path) -> dict[str, str]:
    """The Unicode subgroup of each emoji, by its name as Iconify writes it: face-with-tears-of-joy."""
    emoji = _NAMES.read_json(folder, "en/data.json")
    subgroups = {row["order"]: row["key"] for row in _NAMES.read_json(folder, "en/messages.json")["subgroups"]}
    return {_written(one["label"]): subgroups[one["subgroup"]] for one in emoji if "subgroup" in one}


def drawings(icons: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of each name of an Iconify set, aliases included; those that are turned or mirrored are not."""
    found = {name: _svg(icon, icons) for name, icon in icons["icons"].items()}
    for name, alias in icons.get("aliases", {}).items():
        if alias.keys() == {"parent"} and alias["parent"] in found:
            found[name] = found[alias["parent"]]
    return found


def _svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> str:
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
        f'height="{height}" viewBox="{left} {top} {width} {height}" color="#000000">{icon["body"]}</svg>'
    )


def _record(class_name: str, style: str, svg: str) -> Record:
    picture = rendered(svg, 2 * ITEM.image_size)
    return Record(
        id=f"{class_name}/{style}",
        class_name=class_name,
        group=class_name.split("/")[0],
        item=to_item(picture, ITEM),
        source=style,
        original={"width": picture.width, "height": picture.height, "mode": picture.mode},
    )


def rendered(svg: str, side: int) -> Image.Image:
    """The drawing on white, `side` pixels wide."""
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise DataError(
            "emoji are drawn by resvg-py, which is not installed; next: pip install 'kshot[emoji]'"
        ) from error
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg, background="#ffffff", width=side)))) as image:
        return image.convert("RGB")


def _written(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['\u2019]", "", label.lower())).strip("-")


def _built_in(styles: Collection[str], *, source: str, n_items: int) -> BuiltIn:
    return BuiltIn(
        item=ITEM,
        domain_level=2,
        source=source,
        licence=LICENCE,
        n_items=n_items,
        records=partial(records, styles),
        splits=splits,
    )


BUILT_IN = _built_in(_STYLES, source=SOURCE, n_items=N_ITEMS)
SEEN = _built_in(
    _STYLES.keys() - UNSEEN_STYLES,
    source=f"{SOURCE}, without {' and '.join(UNSEEN_STYLES)}",
    n_items=N_ITEMS - N_UNSEEN,
)
UNSEEN = _built_in(UNSEEN_STYLES, source=f"{SOURCE}, {' and '.join(UNSEEN_STYLES)} alone", n_items=N_UNSEEN)
