"""How often a fault is tried: a few times in the suite, as often as the goals say with KSHOT_FAULTS=full."""

import os

import pytest

FULL = os.environ.get("KSHOT_FAULTS") == "full"
slow = pytest.mark.skipif(not FULL, reason="takes minutes; make faults runs it")


def times(usual: int, full: int) -> int:
    return full if FULL else usual
