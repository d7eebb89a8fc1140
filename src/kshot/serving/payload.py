"""What comes in a request: pictures as files, as base64 in JSON, or as the whole body; vectors as numbers in JSON."""

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from kshot.serving.problems import ProblemError

_FORM, _JSON = "multipart/form-data", "application/json"
_RAW = ("image/", "application/octet-stream")
SUPPORT = "support/"

BODY_SCHEMA: dict[str, Any] = {
    "required": True,
    "content": {
        _FORM: {
            "schema": {
                "type": "object",
                "required": ["items"],
                "properties": {"items": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        _JSON: {
            "schema": {
                "type": "object",
                "required": ["items"],
                "properties": {
                    "items": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "oneOf": [
                                {"type": "string", "contentEncoding": "base64"},
                                {"type": "array", "items": {"type": "number"}},
                            ]
                        },
                    }
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


async def read_items(request: Request, most: int) -> list[bytes]:
    """At least one item and at most so many. Raises a problem for anything else."""
    kind = _kind(request)
    if kind == _JSON:
        items = _encoded(_mapping(await request.body()).get("items"))
    elif kind == _FORM:
        items = [content for _, content in await _files(request, most)]
    elif kind.startswith(_RAW):
        items = [await request.body()]
    else:
        raise _unknown_kind(kind)
    return _counted(items, most)


async def read_support_and_items(request: Request, most: int) -> tuple[list[tuple[str, bytes]], list[bytes]]:
    """Examples (class, item) and items to classify: in JSON support: {CLASS: [...]}, in a form files support/CLASS."""
    kind = _kind(request)
    if kind == _JSON:
        body = _mapping(await request.body())
        given = body.get("support")
        if not isinstance(given, Mapping):
            raise _bad(f"support of type {type(given).__name__}", "support: {CLASS: [items], ...}")
        support = [(name, item) for name, items in given.items() for item in _encoded(items)]
        items = _encoded(body.get("items"))
    elif kind == _FORM:
        files = await _files(request, most)
        support = [(name.removeprefix(SUPPORT), item) for name, item in files if name.startswith(SUPPORT)]
        items = [item for name, item in files if not name.startswith(SUPPORT)]
    else:
        raise _unknown_kind(kind)
    _counted([*support, *items], most)
    return support, _counted(items, most)


async def read_json(request: Request, *names: str) -> list[str]:
    """The texts of a JSON object with just these names."""
    body = _mapping(await request.body())
    if sorted(body) != sorted(names) or not all(isinstance(value, str) for value in body.values()):
        raise _bad(f"the names {', '.join(sorted(map(str, body))[:5]) or 'none'}", f"{', '.join(names)}, each a text")
    return [body[name] for name in names]


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _mapping(body: bytes) -> Mapping[str, Any]:
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _bad(f"a body that is not JSON ({error})", "a JSON object") from error
    if not isinstance(found, dict):
        raise _bad(f"JSON of type {type(found).__name__}", "a JSON object")
    return found


def _encoded(items: Any) -> list[bytes]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise _bad(f"items of type {type(items).__name__}", "a list of items")
    return [_bytes_of(item) for item in items]


def _bytes_of(item: Any) -> bytes:
    if isinstance(item, str):
        encoded = item.partition(",")[2] if item.startswith("data:") else item
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _bad(f"an item that is not base64 ({error})", "base64 of a file") from error
    if isinstance(item, list) and item and all(type(number) in (int, float) for number in item):
        buffer = io.BytesIO()
        try:
            np.save(buffer, np.array(item, dtype=np.float64))
        except OverflowError as error:
            raise _bad("a number that is too large", "numbers of 64 bits") from error
        return buffer.getvalue()
    raise _bad(f"an item of type {type(item).__name__}", "base64 of a file, or a list of numbers")


async def _files(request: Request, most: int) -> list[tuple[str, bytes]]:
    """The files of a form, each with the name of its field, in their order."""
    found = []
    try:
        async with request.form(max_files=most + 1, max_fields=most + 1) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    raise _bad(f"the field {name[:50]!r} that is no file", "files alone")
                found.append((name, await value.read()))
    except HTTPException as error:  # of too many parts, or of a form that is cut off
        raise _bad(f"a form that cannot be read ({error.detail})", f"a form of at most {most} files") from error
    return found


def _counted(items: list[Any], most: int) -> list[Any]:
    if not items:
        raise _bad("no item", "at least one")
    if len(items) > most:
        raise ProblemError(413, "too many items", found=f"{len(items)} items", needed=f"at most {most} in a request")
    return items


def _bad(found: str, needed: str) -> ProblemError:
    return ProblemError(400, "the body cannot be read", found=found, needed=needed)


def _unknown_kind(kind: str) -> ProblemError:
    return ProblemError(
        415,
        "a body of another kind",
        found=f"the content type {kind[:80]!r}",
        needed=f"{_FORM} with files, {_JSON}, or a picture such as image/png",
    )
