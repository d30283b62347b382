"""Byte ranges of one object: neighbours joined into few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Range = tuple[int, int]  # offset and length, in bytes

GAP = 256 << 10  # unwanted bytes that cost less than another request
LIMIT = 8 << 20  # of one request


@dataclass(frozen=True)
class Request:
    """`length` bytes from `offset`; `members` are the positions of the ranges that lie inside, in order of offset."""

    offset: int
    length: int
    members: tuple[int, ...]


def coalesce(ranges: Sequence[Range], gap: int = GAP, limit: int = LIMIT) -> list[Request]:
    """The requests, in order of offset, that together get all `ranges`; every range lies whole in exactly one.

    gap: the most bytes fetched in vain between two neighbours. limit: the most bytes of a request; only a range that is
    longer by itself makes a longer one.
    """
    requests: list[Request] = []
    start = stop = 0
    members: list[int] = []
    for position in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        offset, length = ranges[position]
        joined = max(stop, offset + length)
        if members and (offset - stop > gap or joined - start > limit):
            requests.append(Request(start, stop - start, tuple(members)))
            members = []
        if not members:
            start, joined = offset, offset + length
        stop = joined
        members.append(position)
    if members:
        requests.append(Request(start, stop - start, tuple(members)))
    return requests
