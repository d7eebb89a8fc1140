"""What goes wrong with a request, as a problem document (RFC 9457): what was found, and what is needed."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """An answer with an error status. `title` is the same for every problem of its kind."""

    def __init__(
        self,
        status: int,
        title: str,
        *,
        found: str = "",
        needed: str = "",
        detail: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or f"found {found}; need {needed}")
        self.status, self.title, self.found, self.needed = status, title, found, needed
        self.detail = str(self)
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """As RFC 9457 has it, with `found` and `needed` where they are known apart."""
        known = {"found": self.found, "needed": self.needed}
        return {
            "type": "about:blank",
            "title": self.title or HTTPStatus(self.status).phrase.lower(),
            "status": self.status,
            "detail": self.detail,
            **{name: words for name, words in known.items() if words},
        }
