"""How every settings dataclass reads its values: strictly, without unknown keys and infinite numbers."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
