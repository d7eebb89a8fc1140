import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.data.names import Reason, in_counts, is_system, mask_folders, masks, reason_to_leave_out

NAMES = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), unique=True, max_size=8)


@pytest.mark.parametrize(
    "name",
    [
        *("Thumbs.db", "thumbs.db", "THUMBS.DB", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "Desktop.ini"),
        *("Picasa.ini", ".picasa.ini", "Icon\r", ".DS_Store", "._1.png", "__MACOSX", "@eaDir", "#recycle", "@Recycle"),
        *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found", "LOST.DIR", ".Trash-1000", ".git"),
        *(".directory", ".nomedia", "ZbThumbnail.info", "1.png~", "1.png.part", "1.jpg.crdownload", "~$list.xlsx"),
        *("1.png:Zone.Identifier", "Network Trash Folder", "Temporary Items", "__pycache__", ".ipynb_checkpoints"),
    ],
)
def test_what_a_system_or_a_file_manager_leaves_is_of_the_system(name: str) -> None:
    assert is_system(name)
    assert reason_to_leave_out(name) is Reason.SYSTEM


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("labels.csv", Reason.NOTE),
        ("1.json", Reason.NOTE),
        ("1.XML", Reason.NOTE),
        ("README", Reason.NOTE),
        ("LICENCE", Reason.NOTE),
        ("SHA256SUMS", Reason.NOTE),
        ("more.zip", Reason.ARCHIVE),
        ("more.tar.gz", Reason.ARCHIVE),
        ("more.7z", Reason.ARCHIVE),
        ("clip.MP4", Reason.VIDEO),
    ],
)
def test_files_of_another_kind_are_left_out_for_what_they_are(name: str, reason: Reason) -> None:
    assert reason_to_leave_out(name) is reason


@pytest.mark.parametrize(
    "name",
    ["1.png", "1.JPG", "x.heic", "IMG_0001", "readme.png", "a.b.c.png", "icon", "thumbs.png", "x.npy", "größe.webp"],
)
def test_every_other_file_may_hold_an_item(name: str) -> None:
    assert reason_to_leave_out(name) is None


@given(NAMES)
def test_a_file_that_is_named_as_the_mask_of_a_picture_is_one(stems: list[str]) -> None:
    pictures = {f"{stem}.jpg" for stem in stems}
    marked = {
        f"{stem}{end}" for stem in stems for end in ("_mask.png", "-Mask.jpg", "_mask_1.png", " segmentation.tif")
    }
    before = {f"{word}_{stem}.png" for stem in stems for word in ("mask", "GT")}
    assert masks({*pictures, *marked, *before}) == (marked | before, {})


@given(NAMES)
def test_a_name_like_that_of_a_mask_without_its_picture_is_a_picture(stems: list[str]) -> None:
    assert masks({f"{stem}_mask.png" for stem in stems}) == (set(), {})


@given(NAMES)
def test_lossless_pictures_beside_jpegs_may_be_masks_where_each_has_its_jpeg(stems: list[str]) -> None:
    jpegs, twins = {f"{stem}.jpg" for stem in stems}, {f"{stem}.png" for stem in stems[::2]}
    assert masks(jpegs | twins) == (set(), {twin: twin.replace(".png", ".jpg") for twin in twins})
    assert masks(jpegs | twins | {"one more picture.png"}) == (set(), {})


def test_a_name_with_the_word_label_may_be_that_of_a_mask() -> None:
    likely = dict.fromkeys(["front_label.png", "front-seg.png", "labels_front.png"], "front.png")
    assert masks(["front.png", *likely]) == (set(), likely)


def test_folders_are_named_as_masks_beside_those_of_pictures() -> None:
    assert mask_folders(["images", "masks"]) == ({"masks"}, {"images"})
    assert mask_folders(["Images", "Ground_Truth", "other"]) == ({"Ground_Truth"}, {"Images"})
    assert mask_folders(["train", "test", "ground_truth"]) == ({"ground_truth"}, {"train", "test"})
    assert mask_folders(["mask", "no_mask"]) == ({"mask"}, set())
    assert mask_folders(["masks"]) == ({"masks"}, set())


def test_counts_name_the_most_frequent_reason_first() -> None:
    assert in_counts([Reason.MASK, Reason.ARCHIVE, Reason.MASK]) == "2 masks, 1 archive"
    assert in_counts([Reason.SYSTEM] * 1200) == "1,200 files of the system"
    assert in_counts([]) == ""
