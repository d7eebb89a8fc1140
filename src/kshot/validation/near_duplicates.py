"""Items that are nearly the same and carry different labels: re-encoded, rescaled or touched-up copies.

Two steps. The 64 bits of how an item looks propose pairs; for line drawings they propose hundreds of pairs
for every true one, so each is confirmed by the correlation of the two items' sketches (both are of the
kind of item, `kshot.data.items.contract.Comparable`). Pairs are found without comparing everything with
everything: hashes that differ in at most b bits agree on at least one of b + 1 bands of bits.

Shapes: n items, T numbers of a sketch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kshot.seeding import generator

Int = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_CONFIRM_AT_ONCE = 2**11  # pairs
_CANDIDATE_LIMIT = 5_000_000  # pairs; beyond it nearly all items are near duplicates, and counting on is useless


@dataclass(frozen=True, kw_only=True)
class NearPairs:
    """Confirmed pairs, most alike first: first, second (P,) item numbers, correlation (P,).

    `complete` is False when there were too many candidates to confirm them all.
    """

    first: Int
    second: Int
    correlation: NDArray[np.float64]
    complete: bool = True


def near_pairs(
    hashes: Hashes, sketches: NDArray[np.uint8], labels: Int, contents: Int, *, max_bits: int, min_correlation: float
) -> NearPairs:
    """Pairs with different `labels` (n,) and different `contents` (n,) that look alike.

    Alike: `hashes` (n,) differ in at most `max_bits` bits and `sketches` (n, T) correlate by at least
    `min_correlation`.
    """
    standardised = _standardised(sketches)
    found: list[tuple[Int, Int, NDArray[np.float64]]] = []
    n_candidates = 0
    for first, second in _batches(_candidates(hashes, labels, contents, max_bits)):
        correlation = np.einsum("pt,pt->p", standardised[first], standardised[second]).astype(np.float64).round(4)
        keep = correlation >= min_correlation
        found.append((first[keep], second[keep], correlation[keep]))
        n_candidates += len(keep)
        if n_candidates >= _CANDIDATE_LIMIT:
            break
    first, second, correlation = _joined(found)
    order = np.lexsort((second, first, -correlation))
    return NearPairs(
        first=first[order],
        second=second[order],
        correlation=correlation[order],
        complete=n_candidates < _CANDIDATE_LIMIT,
    )


def _joined(found: list[tuple[Int, Int, NDArray[np.float64]]]) -> tuple[Int, Int, NDArray[np.float64]]:
    none = np.zeros(0, dtype=np.int64)
    first, second, correlation = zip(*[(none, none, np.zeros(0)), *found], strict=True)
    return np.concatenate(first), np.concatenate(second), np.concatenate(correlation)


def _candidates(hashes: Hashes, labels: Int, contents: Int, max_bits: int) -> Iterator[tuple[Int, Int]]:
    """Pairs within `max_bits` bits, each once: in the first band on which its hashes agree."""
    bands = _bands(hashes, max_bits + 1)
    for number, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        ends = np.searchsorted(band[order], band[order], side="right")
        left = np.arange(len(hashes))
        for step in range(1, len(hashes)):
            left = left[left + step < ends[left]]
            if not left.size:
                break
            first, second = order[left], order[left + step]
            near = _differing_bits(hashes, first, second) <= max_bits
            first, second = first[near], second[near]
            keep = (labels[first] != labels[second]) & (contents[first] != contents[second])
            for earlier in bands[:number]:
                keep &= earlier[first] != earlier[second]
            yield first[keep], second[keep]


def _batches(pairs: Iterator[tuple[Int, Int]]) -> Iterator[tuple[Int, Int]]:
    """The same pairs, at most `_CONFIRM_AT_ONCE` at a time."""
    waiting: list[tuple[Int, Int]] = []
    n_waiting = 0
    for first, second in pairs:
        waiting.append((first, second))
        n_waiting += len(first)
        if n_waiting >= _CONFIRM_AT_ONCE:
            yield from _cut(waiting)
            waiting, n_waiting = [], 0
    if n_waiting:
        yield from _cut(waiting)


def _cut(waiting: list[tuple[Int, Int]]) -> Iterator[tuple[Int, Int]]:
    first, second = (np.concatenate(side) for side in zip(*waiting, strict=True))
    for start in range(0, len(first), _CONFIRM_AT_ONCE):
        yield first[start : start + _CONFIRM_AT_ONCE], second[start : start + _CONFIRM_AT_ONCE]


def _bands(hashes: Hashes, count: int) -> list[Hashes]:
    """`count` bands of bits (n,). Bits are spread over the bands, for neighbouring bits of an image agree."""
    position = generator(0, "near_duplicates", "bands").permutation(64)
    masks = [np.bitwise_or.reduce(np.uint64(1) << part.astype(np.uint64)) for part in np.array_split(position, count)]
    return [hashes & mask for mask in masks]


def _differing_bits(hashes: Hashes, first: Int, second: Int) -> Int:
    return np.asarray(np.bitwise_count(hashes[first] ^ hashes[second]), dtype=np.int64)


def _standardised(sketches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of mean 0 and length 1, so that the correlation of two is their dot product; flat rows stay 0."""
    rows = sketches.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)
