"""The edges of a layered graph: which nodes they lead to, and sums over those that lead to each."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

MARKS = 16  # a table of all numbers that there might be may be so many times as long as those that there are
MOST_MARKS = 2**31  # bytes, for a while
WORD = 64  # bits
LIMB = 24  # bits; a float64 adds 2**29 of them without rounding


class Distinct(NamedTuple):
    """Numbers `[n]` without repeats, ascending `values [m]`, the `first` place of each `[m]`, and which each is `[n]`.

    As `numpy.unique` gives them.
    """

    values: np.ndarray
    first: np.ndarray
    which: np.ndarray


def distinct(numbers: np.ndarray, most: int) -> Distinct:
    """The distinct ones among whole `numbers` `[...]` from 0 to below `most`; by marks, where that is quicker."""
    flat = numbers.ravel()
    if most > MARKS * len(flat):
        return Distinct(*np.unique(flat, return_index=True, return_inverse=True))
    whole = np.int32 if len(flat) < 2**31 else np.int64  # the table is by far the largest thing here
    place = np.full(most, -1, whole)
    place[flat[::-1]] = np.arange(len(flat), dtype=whole)[::-1]  # of equals the last is written: the first
    values = np.flatnonzero(place >= 0)
    first = place[values]
    place[values] = np.arange(len(values), dtype=whole)
    return Distinct(values, first, place[flat])


def ranked(parts: Iterable[np.ndarray], most: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The distinct ones among all `parts` `[n]` of whole numbers below `most`, ascending; and which of them others are.

    As `distinct`, but a part at a time. A number that there might be has a bit instead of a word. How many bits are set
    before it says which one it is.
    Reference: Jacobson 1989, Space-efficient static trees and graphs.
    """
    if most > MOST_MARKS:
        values = np.unique(np.concatenate([np.unique(part) for part in parts]))
        return values, partial(np.searchsorted, values)
    marks = np.zeros(-(-most // WORD) * WORD, bool)
    for part in parts:
        marks[part] = True
    words = np.packbits(marks, bitorder="little").view("<u8")
    before = np.bitwise_count(words).cumsum(dtype=np.int64) - np.bitwise_count(words)

    def which(numbers: np.ndarray) -> np.ndarray:
        word, bit = numbers // WORD, (numbers % WORD).astype(np.uint64)
        below = (np.uint64(1) << bit) - np.uint64(1)
        return before[word] + np.bitwise_count(words[word] & below)

    return np.flatnonzero(marks), which


def joined(
    tables: Sequence[np.ndarray], nodes: Sequence[np.ndarray]
) -> tuple[tuple[np.ndarray, ...], Callable[[int], np.ndarray]]:
    """A step of graphs that are walked together, from `nodes` `[n]` of each along its table of children.

    Returns:
      The next nodes, one of each graph `[m]`; and which of these the edges of a token lead to, `[n]`.
    """
    sizes = tuple(int(table.max()) + 1 for table in tables)

    def led(token: int) -> np.ndarray:
        return np.ravel_multi_index([table[node, token] for table, node in zip(tables, nodes, strict=True)], sizes)

    codes, which = ranked(map(led, range(tables[0].shape[1])), math.prod(sizes))
    return np.unravel_index(codes, sizes), lambda token: which(led(token))


def distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct `rows` `[n, k]` of whole numbers from 0 to below 2**32, in order, and which of them each is `[n]`.

    As `numpy.unique` gives them over axis 0, but sooner: as bytes, the most significant first, rows sort alike.
    """
    as_bytes = np.ascontiguousarray(rows, ">u4").view(f"V{4 * rows.shape[1]}").ravel()
    values, which = np.unique(as_bytes, return_inverse=True)
    return values.view(">u4").reshape(-1, rows.shape[1]).astype(rows.dtype), which


def paths_to(children: Iterable[np.ndarray]) -> np.ndarray:
    """How many paths lead to each end of the tables `children`, `[nodes, tokens]` a position: Python integers `[ends]`.

    A count is held in limbs of `LIMB` bits, least first, each a float64 that adds exactly.
    """
    upto = 1
    limbs = [np.ones(1)]
    for table in children:
        upto *= table.shape[1]
        flat, tokens, carry, sums = table.ravel(), table.shape[1], 0.0, []
        for limb in limbs:
            total = np.bincount(flat, np.repeat(limb, tokens)) + carry
            carry, low = np.divmod(total, 2.0**LIMB)
            sums.append(low)
        limbs = sums if upto < 2 ** (LIMB * len(sums)) else [*sums, carry]
    return sum(limb.astype(np.int64).astype(object) << LIMB * place for place, limb in enumerate(limbs))


def wrapped_sums(children: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums uint64 `[next nodes]`, modulo 2**64, of values `[nodes, tokens]` over the edges that lead to each node."""
    sums = np.zeros(children.max() + 1, np.uint64)
    np.add.at(sums, children.ravel(), values.ravel())
    return sums
