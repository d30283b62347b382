"""Where new shards begin and end: pure functions over the sizes of the samples that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from shards.errors import ShardError


@dataclass(frozen=True)
class Cut:
    """One output shard: kept samples from (source, row) `first` up to, not including, `stop`; rows count kept samples."""

    first: tuple[int, int]
    stop: tuple[int, int]
    samples: int
    bytes: int


def cuts(
    counts: Sequence[int] | Int[np.ndarray, " S"],
    sizes: Sequence[int] | Int[np.ndarray, " S"],
    lengths_of: Callable[[int], Int[np.ndarray, " K"]],
    max_count: int,
    max_bytes: int,
) -> Iterator[Cut]:
    """Greedy: a shard takes samples in order while it stays within both limits; a sample over `max_bytes` is alone.

    counts, sizes: kept samples and their bytes in each source. lengths_of(s): bytes of each kept sample of source s, asked
    only where a cut may fall, so that a million sources are planned from their totals.
    """
    first, samples, size = (0, 0), 0, 0
    for source, (count, total) in enumerate(zip(counts, sizes, strict=True)):
        count, total = int(count), int(total)
        if samples + count <= max_count and size + total <= max_bytes:
            samples, size = samples + count, size + total
            continue
        ends = np.concatenate([[0], np.cumsum(lengths_of(source), dtype=np.int64)])
        if len(ends) != count + 1 or int(ends[-1]) != total:
            raise ShardError(
                f"source {source} was scanned with {count} samples of {total} bytes and now has {len(ends) - 1} of "
                f"{int(ends[-1])}; it changed while it was resharded: restore it, or reshard into another folder"
            )
        row = 0
        while row < count:
            by_bytes = int(np.searchsorted(ends, ends[row] + (max_bytes - size), side="right")) - 1
            stop = min(by_bytes, row + max_count - samples, count)
            if stop <= row and samples == 0:
                stop = row + 1  # one sample over max_bytes
            stop = max(stop, row)
            samples, size = samples + stop - row, size + int(ends[stop] - ends[row])
            row = stop
            if row < count:
                yield Cut(first, (source, row), samples, size)
                first, samples, size = (source, row), 0, 0
    if samples:
        yield Cut(first, (len(counts), 0), samples, size)


def even_parts(count: int, total: int, max_count: int, max_bytes: int) -> int:
    """Into how many nearly equal parts a bucket is cut."""
    return max(1, -(-count // max_count), -(-total // max_bytes)) if count else 0


def rank(seed: int, source: int, rows: Int[np.ndarray, " N"]) -> np.ndarray:
    """A 64-bit number a sample, by splitmix64 over (seed, source, row): the global shuffle is the order of these.

    A pure function of where a sample came from, so it does not depend on workers, buckets or what was filtered.
    """
    with np.errstate(over="ignore"):
        x = np.full(len(rows), np.uint64(_mix(_mix(seed) ^ source)), np.uint64) ^ rows.astype(np.uint64)
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def _mix(value: int) -> int:
    """splitmix64 of a Python int."""
    mask = (1 << 64) - 1
    x = (value + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def groups(sizes: Sequence[int], limit: int, most: int) -> list[tuple[int, int]]:
    """Runs [first, stop) of consecutive sources, up to `most` and of up to `limit` bytes together; a larger one is alone."""
    made: list[tuple[int, int]] = []
    first, total = 0, 0
    for at, size in enumerate(sizes):
        if at > first and (total + size > limit or at - first == most):
            made.append((first, at))
            first, total = at, 0
        total += size
    if len(sizes) > first:
        made.append((first, len(sizes)))
    return made
