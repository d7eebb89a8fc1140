"""The kinds of item. To add one: a file here, and a line of this union; the contract tests pick it up."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from kshot.data.items.image import ImageKind
from kshot.data.items.vector import VectorKind


def _kind_of(value: Any) -> Any:
    """The tag of a stored kind, or of a value; datasets were of images alone before they had a tag."""
    return value.get("kind", "image") if isinstance(value, dict) else getattr(value, "kind", None)


AnyItemKind = Annotated[
    Annotated[ImageKind, Tag("image")]
    | Annotated[VectorKind, Tag("vector")],
    Discriminator(_kind_of),
]  # fmt: skip

__all__ = ["AnyItemKind", "ImageKind", "VectorKind"]
