"""One integer seed -> independent, named, counter-based random bits.

A draw is a pure function of (key, counters): episode 7 is the same whoever asks for it, in whatever
order, on whatever machine. Bits come from the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", 2014), applied once per counter.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

if TYPE_CHECKING:
    from torch import Tensor

U64 = np.uint64
Ints = TypeVar("Ints", NDArray[np.int64], "Tensor", default=NDArray[np.int64])
"""Integers of the host, or of a device."""

_GOLDEN, _FIRST, _SECOND = (word - (1 << 64) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def stream_key(seed: int, *names: str | int) -> np.uint64:
    """64-bit key of the stream called `names` under `seed`; different names give unrelated streams."""
    text = "/".join([str(seed), *map(str, names)])
    return U64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


def random_words(key: int | Ints, counter: Ints, *more: Ints) -> Ints:
    """Uniform int64 over all 64 bits, of the broadcast shape of key and counters; equal ones give equal words.

    On the host or on a device, as its arguments are, and the same there.
    """
    state: Ints = _mix(key + (counter + 1) * _GOLDEN)
    for one in more:
        state = _mix(state + (one + 1) * _GOLDEN)
    return state


def random_bits(
    key: np.uint64, counter: NDArray[np.integer] | int, *more: NDArray[np.integer] | int
) -> NDArray[np.uint64]:
    """The same as uint64, for the host."""
    first, *others = (np.asarray(one, dtype=np.int64) for one in (counter, *more))
    with np.errstate(over="ignore"):
        words = random_words(int(key.view(np.int64)), first, *others)
    return np.asarray(words).view(U64)


def uniform(
    key: np.uint64, counter: NDArray[np.integer] | int, *more: NDArray[np.integer] | int
) -> NDArray[np.float64]:
    """Uniform float64 in (0, 1), of the broadcast shape of key and counters."""
    return ((random_bits(key, counter, *more) >> U64(11)).astype(np.float64) + 0.5) * 2.0**-53


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A sequential generator for the stream called `names`, where draws need not be addressable."""
    return np.random.Generator(np.random.Philox(key=int(stream_key(seed, *names))))


def _mix(state: Ints) -> Ints:
    """The masks take the copies of the sign from a shift of negative numbers."""
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * _FIRST
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * _SECOND
    return state ^ (state >> 31 & (1 << 33) - 1)
