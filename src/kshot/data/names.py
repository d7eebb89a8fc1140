"""What a file's name alone says: whether it may hold an item, or is left out and why.

A mask is named like a picture of its folder, with a word such as `_mask` at its end or `mask_` before it; or it lies in
a folder such as `masks` beside `images`. It may be one where the word is `_label` or `_seg`, or where it lies beside a
JPEG of the same name, in a folder where every such lossless picture does.
"""

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

PICTURE_FOLDERS = frozenset({"images", "image", "imgs", "img", "pictures", "photos", "jpegimages"})

_SYSTEM = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.htt", "picasa.ini", "icon\r"),
        *("zbthumbnail.info", "pspbrwse.jbf", "autorun.inf", "__macosx", "__pycache__", "lost+found", "lost.dir"),
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "~snapshot", "$recycle.bin", "recycler", "found.000"),
        *("system volume information", "network trash folder", "temporary items"),
    }
)
_SYSTEM_ENDS = ("~", ".tmp", ".part", ".crdownload", ".swp", ":zone.identifier")
_NOTE_NAME = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|manifest|authors|(sha\d+|md5)(sums?)?|checksums?)", re.IGNORECASE
)
_NOTES = frozenset(
    {
        *(".json", ".jsonl", ".ndjson", ".geojson", ".xml", ".txt", ".csv", ".tsv", ".md", ".rst", ".html", ".htm"),
        *(".ini", ".cfg", ".toml", ".yaml", ".yml", ".db", ".sqlite", ".css", ".js", ".log", ".pdf", ".rtf"),
        *(".doc", ".docx", ".odt", ".xls", ".xlsx", ".ods", ".ppt", ".pptx", ".parquet", ".feather", ".mat"),
        *(".h5", ".hdf5", ".pkl", ".pickle", ".pt", ".pth", ".onnx", ".py", ".ipynb", ".sh", ".bat", ".m", ".r"),
        *(".url", ".lnk", ".sha256", ".md5", ".xmp", ".thm", ".aae"),
    }
)
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar"})
_VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".m4v", ".wav", ".mp3"})
_LOSSY, _LOSSLESS = frozenset({".jpg", ".jpeg"}), frozenset({".png", ".bmp", ".gif", ".tif", ".tiff"})


def _named_with(word: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return (
        re.compile(rf"(?P<picture>.+?)[-_. ]+{word}[-_. ]?\d*", re.IGNORECASE),
        re.compile(rf"{word}[-_. ]+(?P<picture>.+)", re.IGNORECASE),
    )


_MASK_NAMES = _named_with(r"(?:masks?|segmentation|gt|ground_?truth|annot(?:ations?)?)")
_LIKELY_NAMES = _named_with(r"(?:segm?|labels?)")
_ANY_WORD = re.compile(r"mask|seg|gt|ground|annot|label", re.IGNORECASE)
_MASK_FOLDERS = frozenset(
    {*("masks", "mask", "annotations", "annotation", "groundtruth", "gt", "segmentations", "segmentation", "labels")}
) | {"segmentationclass", "segmentationobject"}
_LIKELY_FOLDERS = frozenset({"labels"})
_BESIDE_MASKS = PICTURE_FOLDERS | {"train", "training", "val", "valid", "validation", "test", "testing"}


class Reason(StrEnum):
    """Why a file is left out that is no damaged item: what it is counted as."""

    SYSTEM = "file of the system"
    NOTE = "annotation or note"
    MASK = "mask"
    ARCHIVE = "archive"
    VIDEO = "video or sound"
    UNLISTED = "picture that no row names"
    UNLABELLED = "picture without a class"


_PLURALS = {
    Reason.SYSTEM: "files of the system",
    Reason.NOTE: "annotations or notes",
    Reason.MASK: "masks",
    Reason.ARCHIVE: "archives",
    Reason.VIDEO: "videos or sounds",
    Reason.UNLISTED: "pictures that no row names",
    Reason.UNLABELLED: "pictures without a class",
}


def counted(number: int, reason: Reason) -> str:
    return f"{number:,} {reason if number == 1 else _PLURALS[reason]}"


def in_counts(reasons: Iterable[Reason]) -> str:
    """How many files are left out for each reason, the most frequent first: "3 masks, 1 archive"."""
    return ", ".join(counted(number, reason) for reason, number in Counter(reasons).most_common())


def is_system(name: str) -> bool:
    """Whether an operating system or a file manager leaves files or folders of this name behind."""
    folded = name.lower()
    return name.startswith((".", "~$")) or folded in _SYSTEM or folded.endswith(_SYSTEM_ENDS)


def reason_to_leave_out(name: str) -> Reason | None:
    """None where a file of this name may hold an item."""
    suffix = _stem_and_suffix(name)[1].lower()
    if is_system(name):
        return Reason.SYSTEM
    if suffix in _NOTES or (not suffix and _NOTE_NAME.fullmatch(name)):
        return Reason.NOTE
    if suffix in _ARCHIVES:
        return Reason.ARCHIVE
    return Reason.VIDEO if suffix in _VIDEOS else None


def masks(names: Iterable[str]) -> tuple[set[str], dict[str, str]]:
    """Those of the pictures of one folder that are masks of others, and those that may be, with the picture of each.

    Whether the latter are, their headers say.
    """
    parts = {name: _stem_and_suffix(name) for name in names}
    by_stem = {stem: name for name, (stem, _) in parts.items()}
    lossy = {stem: name for name, (stem, suffix) in parts.items() if suffix.lower() in _LOSSY}
    worded = {name: stem for name, (stem, _) in parts.items() if _ANY_WORD.search(stem)}
    sure = {name for name, stem in worded.items() if any(one in by_stem for one in _marked(stem, _MASK_NAMES))}
    likely = {
        name: by_stem[one]
        for name, stem in worded.items()
        for one in _marked(stem, _LIKELY_NAMES)
        if one in by_stem and name not in sure
    }
    marked = sure.union(likely)
    lossless = {name: stem for name, (stem, suffix) in parts.items() if suffix.lower() in _LOSSLESS}
    twins = {name: stem for name, stem in lossless.items() if name not in marked}
    if all(stem in lossy for stem in twins.values()):
        likely |= {name: lossy[stem] for name, stem in twins.items()}
    return sure, likely


def mask_folders(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Those of sibling folders that are named as masks, and those of whose pictures they may be."""
    words = {name: _word(name) for name in names}
    named = {name for name, word in words.items() if word in _MASK_FOLDERS}
    return named, {name for name, word in words.items() if word in _BESIDE_MASKS} if named else set()


def is_likely_mask_folder(name: str) -> bool:
    """Whether a folder of this name may as well hold pictures, of labels."""
    return _word(name) in _LIKELY_FOLDERS


def stems_of_pictures(name: str) -> set[str]:
    """The stems of those pictures of which a file of this name may be the mask or the annotation."""
    stem = stem_of(name)
    return {stem, *_marked(stem, _MASK_NAMES + _LIKELY_NAMES)}


def stem_of(name: str) -> str:
    return _stem_and_suffix(name)[0]


def _marked(stem: str, patterns: Iterable[re.Pattern[str]]) -> list[str]:
    """The stems of the pictures of which a mask may be named so."""
    return [match["picture"] for pattern in patterns if (match := pattern.fullmatch(stem)) is not None]


def _word(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def _stem_and_suffix(name: str) -> tuple[str, str]:
    """As pathlib has them, which takes many times as long."""
    at = name.rfind(".")
    return (name[:at], name[at:]) if 0 < at < len(name) - 1 else (name, "")
