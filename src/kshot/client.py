"""A service from Python, in a line or two.

    client = Client("http://localhost:8400", key="kshot_...")
    client.add("parts", "scratch", [Path("a.png"), Path("b.png")])
    client.classify("parts", [Path("c.png")])[0]["class"]

Items are files, the bytes of one, or lists of numbers. What comes back is what the interface gives, see /docs of the
service.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np

from kshot.errors import KshotError, RefusedError, UserError

Item = Path | bytes | Sequence[float]
_TIMEOUT_S = 60.0


class Client:
    def __init__(self, url: str, *, key: str = "", timeout_s: float = _TIMEOUT_S) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def galleries(self) -> list[str]:
        found: list[str] = self._ask("GET", "/v1/galleries")["galleries"]
        return found

    def classes(self, gallery: str) -> dict[str, list[str]]:
        """The ids of the examples of each class."""
        found = self._ask("GET", _path(gallery))["classes"]
        return {one["class"]: [example["id"] for example in one["examples"]] for one in found}

    def add(self, gallery: str, class_name: str, items: Sequence[Item]) -> list[str]:
        """The ids of the examples, which are stored when this returns."""
        done = self._ask("PUT", _path(gallery, "classes", class_name, "examples"), files=_files("items", items))
        return [example["id"] for example in done["examples"]]

    def classify(self, gallery: str, items: Sequence[Item], *, top: int = 5) -> list[dict[str, Any]]:
        """An answer for each item: class, probability, unknown, nearest, probabilities, id."""
        found: list[dict[str, Any]] = self._ask(
            "POST", _path(gallery, "classify"), files=_files("items", items), params={"top": top}
        )["answers"]
        return found

    def classify_once(self, support: dict[str, Sequence[Item]], items: Sequence[Item]) -> list[dict[str, Any]]:
        """The same with the examples of each class, of which the service keeps nothing."""
        examples = [file for name, shown in support.items() for file in _files(f"support/{name}", shown)]
        found: list[dict[str, Any]] = self._ask("POST", "/v1/classify", files=[*examples, *_files("items", items)])[
            "answers"
        ]
        return found

    def correct(self, answer_id: str, class_name: str) -> None:
        """Say the right class of an earlier answer."""
        self._ask("POST", "/v1/feedback", json={"id": answer_id, "class": class_name})

    def quality(self, gallery: str) -> dict[str, Any]:
        """How often an example is known by the others, and what is confused."""
        return self._ask("GET", _path(gallery, "quality"))

    def example(self, gallery: str, class_name: str, example_id: str) -> bytes:
        return self._send("GET", _path(gallery, "classes", class_name, "examples", example_id)).content

    def rename(self, gallery: str, before: str, after: str) -> None:
        self._ask("POST", _path(gallery, "classes", before, "rename"), json={"to": after})

    def delete(self, gallery: str, class_name: str | None = None) -> None:
        """A class, or the whole gallery."""
        self._send("DELETE", _path(gallery) if class_name is None else _path(gallery, "classes", class_name))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._send(method, path, **sent).json()
        return found

    def _send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **sent)
        except httpx.HTTPError as error:
            raise KshotError(
                f"no answer from {self._http.base_url} ({error}); need a service; next: kshot serve"
            ) from error
        if response.is_error:
            try:
                detail = response.json()["detail"]
            except (ValueError, KeyError, TypeError):
                detail = response.text[:200]
            raise RefusedError(f"{self._http.base_url} refuses: {detail}", response.status_code)
        return response


def _path(gallery: str, *parts: str) -> str:
    return "/".join(["/v1/galleries", quote(gallery, safe=""), *(quote(part, safe="") for part in parts)])


def _files(field: str, items: Sequence[Item]) -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, ("item", _bytes_of(item))) for item in items]


def _bytes_of(item: Item) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, Path):
        try:
            return item.read_bytes()
        except OSError as error:
            raise UserError(f"{item} cannot be read ({error.strerror}); need a file") from error
    buffer = io.BytesIO()
    np.save(buffer, np.array(item, dtype=np.float64))
    return buffer.getvalue()
