"""The emoji, from packages that the tests write: the real ones are fetched by `make emoji`."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kshot.data.packed import PackedDataset
from kshot.ingest import BUILT_IN, emoji
from kshot.ingest.npm import Package
from kshot.ingest.pack import ingest_built_in

STYLES = tuple(emoji._STYLES)
COLOURS = ["#d00", "#0a0", "#00d", "#aa0", "#0aa", "#a0a", "#555", "#a50", "#05a", "#5a0"]
NAMES = {
    "grinning-face": "face-smiling",
    "dog-face": "animal-mammal",
    "red-apple": "food-fruit",
    "one-oclock": "time",
    "red-circle": "geometric",
    "up-button": "alphanum",
    "upwards-button": "av-symbol",
    "unknown-thing": "",
}


def body(name: str, style: int) -> str:
    """Another shape for each name, but one for the two buttons, in the colour of the style."""
    size = 4 + [*NAMES, "only-here"].index(name.replace("upwards", "up"))
    return f'<rect x="2" y="2" width="{size}" height="9" fill="{COLOURS[style]}"/>'


def icons(style: int) -> dict[str, object]:
    drawn = {name: {"body": body(name, style)} for name in NAMES if (name, style) != ("dog-face", 0)}
    if style < 8:
        drawn["only-here"] = {"body": body("only-here", style)}
    found: dict[str, object] = {"icons": drawn, "width": 32, "height": 32}
    if style == 3:  # one set calls the apple otherwise, and has an alias for it
        drawn["apple"] = drawn.pop("red-apple")
        found["aliases"] = {"red-apple": {"parent": "apple"}, "turned": {"parent": "apple", "rotate": 1}}
    return found


def write(folder: Path, file: str, files: dict[str, object]) -> str:
    with tarfile.open(folder / file, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    styles = {}
    for number, style in enumerate(STYLES):
        package = Package(name=f"@iconify-json/{style}", version="1.0.0", sha256="")
        sha256 = write(folder, package.file, {"icons.json": icons(number)})
        styles[style] = Package(name=package.name, version="1.0.0", sha256=sha256)
    names = Package(name="emojibase-data", version="1.0.0", sha256="")
    groups = list(dict.fromkeys(group for group in NAMES.values() if group))
    sha256 = write(
        folder,
        names.file,
        {
            "en/data.json": [
                {"label": name.replace("-", " ").replace("oclock", "o\u2019clock"), "subgroup": groups.index(group)}
                for name, group in NAMES.items()
                if group
            ],
            "en/messages.json": {"subgroups": [{"key": key, "order": n} for n, key in enumerate(groups)]},
        },
    )
    monkeypatch.setattr(emoji, "_STYLES", styles)
    monkeypatch.setattr(emoji, "_NAMES", Package(name="emojibase-data", version="1.0.0", sha256=sha256))
    monkeypatch.setenv(emoji.FOLDER_VARIABLE, str(folder))
    emoji._classes.cache_clear()
    return folder


def test_classes_are_the_names_that_nine_styles_draw_and_the_style_is_the_domain(
    packages: Path, tmp_path: Path
) -> None:
    ingest_built_in(emoji.BUILT_IN, "emoji", tmp_path / "data")
    dataset = PackedDataset.open(tmp_path / "data" / "emoji")
    assert sorted(dataset.splits.by_class()) == [
        "animal-mammal/dog-face",
        "face-smiling/grinning-face",
        "food-fruit/red-apple",
    ]
    assert dataset.n_stored == 9 + 10 + 10
    assert dataset.domain_names == tuple(sorted(STYLES))
    rows = dataset.manifest.to_pandas()
    assert rows["id"][0] == f"animal-mammal/dog-face/{STYLES[1]}"
    assert set(rows["group"]) == {"animal-mammal", "face-smiling", "food-fruit"}
    assert dataset.domains is not None
    assert [dataset.domain_names[n] for n in dataset.domains] == [name.rpartition("/")[2] for name in rows["id"]]


def test_drawings_are_on_white_in_the_colours_of_their_style(packages: Path) -> None:
    record = next(one for one in emoji.records() if one.id == f"animal-mammal/dog-face/{STYLES[2]}")
    assert record.item.shape == (84, 84, 3)
    assert record.item[0, 0].tolist() == [255, 255, 255]
    assert record.item[8, 8].tolist() == [0, 0, 0xDD]
    assert (record.original["width"], record.source) == (168, STYLES[2])


def test_drawings_that_two_names_share_are_of_neither(packages: Path) -> None:
    assert not any("up" in name for name in emoji._classes())


def test_held_out_styles_are_a_dataset_and_the_rest_another_with_the_same_split_of_classes(
    packages: Path, tmp_path: Path
) -> None:
    found = {}
    for name in ("emoji", "emoji-seen", "emoji-unseen"):
        ingest_built_in(BUILT_IN[name], name, tmp_path / "data")
        found[name] = PackedDataset.open(tmp_path / "data" / name)
    assert found["emoji-unseen"].domain_names == tuple(sorted(emoji.UNSEEN_STYLES))
    assert found["emoji-seen"].domain_names == tuple(sorted({*STYLES} - {*emoji.UNSEEN_STYLES}))
    ids = {name: set(dataset.manifest["id"].to_pylist()) for name, dataset in found.items()}
    assert ids["emoji-seen"] | ids["emoji-unseen"] == ids["emoji"]
    assert not ids["emoji-seen"] & ids["emoji-unseen"]
    splits = [dataset.splits.by_class() for dataset in found.values()]
    assert splits[0] == splits[1] == splits[2]


def test_what_is_fetched_is_kept_in_the_project_folder(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(emoji.FOLDER_VARIABLE)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(packages, tmp_path / ".kshot" / "packages")
    monkeypatch.setenv("PATH", "")  # so that nothing can be fetched
    assert len(emoji._classes()) == 3


def test_the_real_packages_are_named_by_version_and_hash() -> None:
    known = [*emoji._STYLES.values(), emoji._NAMES]
    assert len({one.sha256 for one in known}) == len(known) == 11
    assert emoji._STYLES["noto"].file == "iconify-json-noto-1.2.9.tgz"
    assert all(np.char.str_len(one.sha256) == 64 for one in known)
