"""Which attributes the mapping confuses, where truth is known, else which stand together beyond their rates. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from villa_dist.report.scan import Scan

MOST_SHOWN = 24  # attributes of the matrix: the most frequent
MOST_ROWS = 10  # of the lists
FEWEST = 5  # regions; fewer together say little


@dataclass(frozen=True)
class Matrix:
    """cells[i][j]: percent of the having[i] regions with attribute i that were given j; i = j: rightly."""

    phrases: tuple[str, ...]
    groups: tuple[str, ...]
    having: tuple[int, ...]
    cells: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Confused:
    """`count` of the `having` regions with `true` were given `given` instead."""

    true: str
    given: str
    count: int
    having: int

    @property
    def share(self) -> float:
        return 100.0 * self.count / self.having


@dataclass(frozen=True)
class Together:
    """Given to the same region `count` times, where their rates alone would give `expected`."""

    first: str
    second: str
    count: int
    expected: float

    @property
    def times(self) -> float:
        return self.count / self.expected


def matrix(found: Scan, phrases: Sequence[str], groups: Sequence[str]) -> Matrix | None:
    """Of the most frequent attributes, group by group; None where nothing is known to be true."""
    if not found.judged or not found.having:
        return None
    often = sorted(found.having, key=lambda a: (-found.having[a], a))[:MOST_SHOWN]
    order = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    shown = sorted(often, key=lambda a: (order[groups[a]], a))
    cells = tuple(tuple(100.0 * found.given.get((b, a), 0) / found.having[b] for a in shown) for b in shown)
    return Matrix(
        tuple(phrases[a] for a in shown), tuple(groups[a] for a in shown), tuple(found.having[a] for a in shown), cells
    )


def confused(found: Scan, phrases: Sequence[str], groups: Sequence[str]) -> list[Confused]:
    """The most frequent confusions of two attributes of one group, most regions first."""
    wrong = [
        Confused(phrases[b], phrases[a], count, found.having[b])
        for (b, a), count in found.given.items()
        if a != b and groups[a] == groups[b]
    ]
    return sorted(wrong, key=lambda c: (-c.count, c.true, c.given))[:MOST_ROWS]


def together(found: Scan, phrases: Sequence[str]) -> list[Together]:
    """Attributes that stand together more often than their rates say, most surprising first."""
    rows = []
    for (a, b), count in found.both.items():
        expected = found.having[a] * found.having[b] / found.regions
        if count >= FEWEST and count > expected:
            rows.append(((count - expected) / expected**0.5, Together(phrases[a], phrases[b], count, expected)))
    return [row for _, row in sorted(rows, key=lambda r: (-r[0], r[1].first, r[1].second))[:MOST_ROWS]]
