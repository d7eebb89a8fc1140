"""The vector kind: a fixed number of numbers per item, such as the features of an encoder or a row of a table."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.data.items.contract import ItemSource, Read
from kshot.data.items.files import file_bytes
from kshot.errors import DataError
from kshot.seeding import generator
from kshot.settings import STRICT

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from torch import Tensor

Numbers = NDArray[np.float32]

_SHOWN_NUMBERS = 8


@settings(frozen=True, kw_only=True, config=STRICT)
class VectorKind:
    """Numbers (size,) float32, all finite. Nothing scales them: a dataset holds the numbers that it was given."""

    original: ClassVar[Mapping[str, type[int] | type[str]]] = {}

    size: Annotated[int, Field(ge=1, le=2**20)]
    kind: Literal["vector"] = "vector"

    @property
    def shape(self) -> tuple[int]:
        return (self.size,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def __str__(self) -> str:
        return f"vectors of {self.size} numbers"

    def read(self, source: ItemSource) -> Read:
        """From a .npy file, the bytes of one, an array (size,), or numbers in a text with commas between them."""
        if isinstance(source, str):
            return Read(item=self._checked(_numbers_in(source)), original={})
        given = source if isinstance(source, np.ndarray) else _loaded(source)
        return Read(item=self._checked(given), original={})

    def tensor(self, stored: "Tensor") -> "Tensor":
        """float32 (..., size), as they are."""
        return stored

    def show(self, stored: NDArray[Any]) -> "Markup":
        """The first few numbers."""
        from markupsafe import Markup

        shown = " ".join(f"{number:.3g}" for number in stored[:_SHOWN_NUMBERS].tolist())
        return Markup("<code>{}{}</code>").format(shown, " ..." if self.size > _SHOWN_NUMBERS else "")

    def facts(self, stored: NDArray[Any]) -> "pd.DataFrame":
        """not_finite: how many numbers of each item are infinite or not a number."""
        import pandas as pd

        return pd.DataFrame({"not_finite": (~np.isfinite(stored)).sum(axis=1).astype(np.float64)})

    def example(self, n: int) -> Numbers:
        return generator(0, "example", "vector").standard_normal((n, self.size), dtype=np.float32)

    def _checked(self, given: NDArray[Any]) -> Numbers:
        if given.dtype.kind not in "fiub":
            raise DataError(f"found values of type {given.dtype}; needed numbers")
        if given.shape != self.shape:
            raise DataError(f"found numbers of shape {given.shape}; needed {self.shape}")
        with np.errstate(over="ignore"):
            numbers = given.astype(np.float32)
        n_bad = int((~np.isfinite(numbers)).sum())
        if n_bad:
            raise DataError(
                f"{n_bad} of {self.size} numbers are infinite or not a number in float32; needed finite ones"
            )
        return numbers


def _loaded(source: Path | bytes) -> NDArray[Any]:
    try:
        loaded = np.load(io.BytesIO(file_bytes(source)), allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # a damaged file surfaces as several unrelated types
        raise DataError(f"not a .npy file of numbers: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise DataError("found an archive of arrays; needed a .npy file of one")
    return loaded


def _numbers_in(text: str) -> NDArray[Any]:
    try:
        return np.array([float(cell) for cell in text.split(",")])
    except ValueError as error:
        raise DataError(f"{error}; needed numbers with commas between them") from error
