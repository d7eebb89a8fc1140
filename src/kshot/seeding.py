"""One integer seed -> independent, named, counter-based random bits.

A draw is a pure function of (key, counters): episode 7 is the same whoever asks for it, in whatever
order, on whatever machine. Bits come from the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", 2014), applied once per counter.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

U64 = np.uint64
_GOLDEN = U64(0x9E3779B97F4A7C15)


def stream_key(seed: int, *names: str | int) -> np.uint64:
    """64-bit key of the stream called `names` under `seed`; different names give unrelated streams."""
    text = "/".join([str(seed), *map(str, names)])
    return U64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


def random_bits(key: np.uint64 | NDArray[np.uint64], *counters: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """Uniform uint64 of the broadcast shape of key and counters; equal ones give equal bits."""
    with np.errstate(over="ignore"):
        state = np.asarray(key, dtype=U64)
        for counter in counters:
            state = _mix(state + _GOLDEN * (np.asarray(counter).astype(U64) + U64(1)))
    return np.asarray(state)


def uniform(key: np.uint64 | NDArray[np.uint64], *counters: NDArray[np.integer] | int) -> NDArray[np.float64]:
    """Uniform float64 in (0, 1), of the broadcast shape of key and counters."""
    return ((random_bits(key, *counters) >> U64(11)).astype(np.float64) + 0.5) * 2.0**-53


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A sequential generator for the stream called `names`, where draws need not be addressable."""
    return np.random.Generator(np.random.Philox(key=int(stream_key(seed, *names))))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> U64(27))) * U64(0x94D049BB133111EB)
    return state ^ (state >> U64(31))
