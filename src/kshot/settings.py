"""How every settings dataclass reads its values: strictly, and refusing keys that it does not know."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True)
