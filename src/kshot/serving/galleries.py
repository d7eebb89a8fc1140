"""What users keep: galleries, each a named set of classes with their examples.

A gallery is a folder of class folders of pictures, as they were posted, so that it outlives every model, and is a
source for `kshot ingest` as it stands:

    GALLERY/gallery.json                 it exists
    GALLERY/revision                     another text after every change: who has another one has to look again
    GALLERY/renaming.json                a class that is being renamed; whoever looks next finishes it
    GALLERY/classes/CLASS/ID.END         an example: ID is the start of the SHA-256 of its bytes

An example is written before it is acknowledged, in one step, so there is no half of one and no order to keep: every
process sees the same examples in the same order, that of class and ID.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import quote, unquote
from uuid import uuid4

from kshot.data.items.contract import ItemKind
from kshot.errors import DataError, UnknownNameError
from kshot.printing import listed
from kshot.serving.files import Files

GALLERY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_CLASS_LETTERS = 100
_MAX_FOLDER_BYTES = 240
_ID_LETTERS = 32
_MARK, _REVISION, _RENAMING, _CLASSES = "gallery.json", "revision", "renaming.json", "classes"
_NOT_IN_NAMES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_PLAIN = "".join(chr(code) for code in range(32, 127) if chr(code) not in '%/\\:*?"<>|')


def example_id(content: bytes) -> str:
    """The name of an example, by its bytes."""
    return sha256(content).hexdigest()[:_ID_LETTERS]


@dataclass(frozen=True, order=True, kw_only=True)
class Example:
    """`id` names the bytes, and `end` is that of a file of their format."""

    class_name: str
    id: str
    end: str

    @property
    def path(self) -> str:
        return f"{_CLASSES}/{folder_of(self.class_name)}/{self.id}{self.end}"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a gallery at one revision, in the order of class and id."""

    revision: str
    examples: tuple[Example, ...]

    @property
    def classes(self) -> dict[str, tuple[Example, ...]]:
        found: dict[str, list[Example]] = {}
        for example in self.examples:
            found.setdefault(example.class_name, []).append(example)
        return {name: tuple(of_class) for name, of_class in found.items()}

    def of(self, class_name: str) -> tuple[Example, ...]:
        """Raises UnknownNameError for a class that is not there."""
        classes = self.classes
        if class_name not in classes:
            raise UnknownNameError(f"no class {class_name!r}; found: {listed(sorted(classes), 10) or 'none'}")
        return classes[class_name]

    def example(self, class_name: str, id_: str) -> Example:
        """Raises UnknownNameError for one that is not there."""
        found = next((example for example in self.of(class_name) if example.id == id_), None)
        if found is None:
            raise UnknownNameError(f"no example {id_!r} in the class {class_name!r}")
        return found


class GalleryStore:
    """All galleries below one address. Every method may be called by several processes at once."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @property
    def near(self) -> bool:
        return self._files.near

    def names(self) -> list[str]:
        named = (name for name in self._files.names() if GALLERY_NAME.fullmatch(name))
        return [name for name in named if self._files.exists(f"{name}/{_MARK}")]

    def create(self, name: str) -> bool:
        """Whether it is new. Raises DataError for a name that cannot stand in an address."""
        if not GALLERY_NAME.fullmatch(name):
            raise DataError(
                f"found the gallery name {name!r}; need up to 64 letters of a to z, digits, - and _, first a letter "
                "or digit"
            )
        if self._files.exists(f"{name}/{_MARK}"):
            return False
        self._files.remove_tree(name)  # what is left of one whose deletion was cut off
        self._changed(name)
        self._files.write(f"{name}/{_MARK}", b"{}\n")
        return True

    def delete(self, name: str) -> None:
        self.check(name)
        self._files.remove(f"{name}/{_MARK}")
        self._files.remove_tree(name)

    def check(self, name: str) -> None:
        """Raise UnknownNameError where there is no gallery of this name."""
        if not GALLERY_NAME.fullmatch(name) or not self._files.exists(f"{name}/{_MARK}"):
            found = listed(self.names(), 10) or "none"
            raise UnknownNameError(f"no gallery {name!r}; found: {found}; next: put an example into it")

    def revision(self, name: str) -> str:
        """Changes with every change. Raises UnknownNameError where there is no such gallery."""
        with suppress(FileNotFoundError):
            if GALLERY_NAME.fullmatch(name):
                return self._files.read(f"{name}/{_REVISION}").decode()
        self.check(name)
        return ""

    def contents(self, name: str) -> Contents:
        """Raises UnknownNameError where there is no such gallery."""
        self.check(name)
        revision = self.revision(name)  # before looking: what comes in between is looked at again
        self._finish_renaming(name)
        return Contents(revision=revision, examples=tuple(sorted(self._examples(name))))

    def add(self, name: str, class_name: str, contents: Sequence[bytes], item: ItemKind) -> list[Example]:
        """The examples, in the order of their contents; those that were there already are no other ones.

        All are read as items first: raises DataError, with the number of the first that cannot be, and writes none.
        """
        class_name = plain_class_name(class_name)
        self.check(name)
        found = []
        for number, content in enumerate(contents, 1):
            try:
                item.read(content)
            except DataError as error:
                raise DataError(f"example {number} of {len(contents)}: {error}") from error
            found.append(Example(class_name=class_name, id=example_id(content), end=_end(content)))
        for example, content in zip(found, contents, strict=True):
            self._files.write(f"{name}/{example.path}", content)
        self._changed(name)
        return found

    def remove(self, name: str, examples: Iterable[Example]) -> None:
        for example in examples:
            try:
                self._files.remove(f"{name}/{example.path}")
            except FileNotFoundError:
                raise UnknownNameError(f"no example {example.id} in {example.class_name!r} of {name}") from None
        self._changed(name)

    def rename_class(self, name: str, before: str, after: str) -> None:
        """Raises DataError where `after` is there already, UnknownNameError where `before` is not."""
        after = plain_class_name(after)
        contents = self.contents(name)
        contents.of(before)
        if after in contents.classes:
            raise DataError(f"found the class {after!r} in {name} already; need a name of none of its classes")
        self._files.write(f"{name}/{_RENAMING}", json.dumps({"before": before, "after": after}).encode())
        self._finish_renaming(name)
        self._changed(name)

    def read(self, name: str, examples: Sequence[Example]) -> list[bytes]:
        """Their bytes, as they were posted."""
        try:
            return self._files.read_many([f"{name}/{example.path}" for example in examples])
        except FileNotFoundError:
            raise UnknownNameError(f"an example of {name} was removed meanwhile; next: ask again") from None

    def write_note(self, name: str, note: str, content: bytes) -> None:
        """Keep something about a gallery with it."""
        self._files.write(f"{name}/notes/{note}", content)

    def read_note(self, name: str, note: str) -> bytes | None:
        try:
            return self._files.read(f"{name}/notes/{note}")
        except FileNotFoundError:
            return None

    def notes(self, name: str) -> list[str]:
        return self._files.below(f"{name}/notes")

    def _examples(self, name: str) -> Iterable[Example]:
        for path in self._files.below(f"{name}/{_CLASSES}"):
            folder, _, file = path.rpartition("/")
            if folder and "/" not in folder:
                id_, dot, end = file.partition(".")
                yield Example(class_name=unquote(folder), id=id_, end=dot + end)

    def _finish_renaming(self, name: str) -> None:
        try:
            names = json.loads(self._files.read(f"{name}/{_RENAMING}"))
        except FileNotFoundError:
            return
        for example in self._examples(name):
            if example.class_name == names["before"]:
                moved = Example(class_name=names["after"], id=example.id, end=example.end)
                try:
                    self._files.write(f"{name}/{moved.path}", self._files.read(f"{name}/{example.path}"))
                    self._files.remove(f"{name}/{example.path}")
                except FileNotFoundError:
                    continue  # another process moves it too
        with suppress(FileNotFoundError):
            self._files.remove(f"{name}/{_RENAMING}")

    def _changed(self, name: str) -> None:
        self._files.write(f"{name}/{_REVISION}", uuid4().hex.encode())


def plain_class_name(given: str) -> str:
    """The name as it is kept (NFC). Raises DataError for none, one too long, and letters that are not seen."""
    name = unicodedata.normalize("NFC", given)
    bad = next((letter for letter in name if unicodedata.category(letter) in _NOT_IN_NAMES), None)
    if bad is not None:
        raise DataError(f"found the letter U+{ord(bad):04X} in a class name; need letters that can be seen")
    if "/" in name or "\\" in name:
        raise DataError(f"found {name[:20]!r} as a class name; need one without / and \\, which stand in addresses")
    if not name.strip() or name != name.strip() or len(name) > MAX_CLASS_LETTERS:
        raise DataError(
            f"found a class name of {len(name)} letters, {name[:20]!r}; need 1 to {MAX_CLASS_LETTERS} without spaces "
            "at its ends"
        )
    if len(folder_of(name).encode()) > _MAX_FOLDER_BYTES:
        raise DataError(
            f"the class name {name[:20]!r}... takes more than {_MAX_FOLDER_BYTES} bytes as a folder; need fewer letters"
        )
    return name


def folder_of(class_name: str) -> str:
    """A name for a folder on every system, which says what the class is called."""
    folder = "".join(letter if letter in _PLAIN or letter > "\x7f" else quote(letter, safe="") for letter in class_name)
    return f"%2E{folder[1:]}" if folder.startswith(".") else folder


_ENDS = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"\x93NUMPY", ".npy"))


def _end(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    if content[:2] in (b"II", b"MM"):
        return ".tif"
    return next((end for start, end in _ENDS if content.startswith(start)), ".bin")
