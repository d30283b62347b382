"""The data set card: what each split holds, and which attributes its texts mention how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shards import manifest
from shards.commit import StageFolder
from shards.errors import ShardError
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.report.markers import Markers
from villa_dist.report.tables import SPLITS
from villa_dist.report.text import number

MOST_BARS = 40
DECADES = ((0, 0), (1, 9), (10, 99), (100, 999), (1000, 9999), (10_000, None))


@dataclass(frozen=True)
class SplitCard:
    """Of the committed shards of a split. size: bytes of their tars; counts: mentions, regions and pairs, where known
    (estimated from some of the shards where there are very many)."""

    split: str
    shards: int
    images: int
    size: int
    refused: int
    counts: Mapping[str, float]
    digest: str

    def each(self, name: str) -> float | None:
        """The mean of a count over images; None where it is not known."""
        known = number(self.counts.get(name))
        return known / self.images if known is not None and self.images else None


@dataclass(frozen=True)
class Frequency:
    phrase: str
    group: str
    count: int
    share: float  # of the most frequent, in percent


@dataclass(frozen=True)
class Card:
    """attributes: how many there are; frequent: the most frequent; spread: (range of counts, attributes in it)."""

    splits: tuple[SplitCard, ...]
    attributes: int
    frequent: tuple[Frequency, ...]
    spread: tuple[tuple[str, int], ...]


def card(markers: Markers, words: Vocabulary | None) -> Card:
    """Raises: ShardError when a marker or the manifest is damaged."""
    splits = tuple(found for split in SPLITS if (found := of_split(markers, split)) is not None)
    if words is None:
        return Card(splits, 0, (), ())
    order = sorted(range(len(words)), key=lambda a: (-words.counts[a], a))[:MOST_BARS]
    most = max(1, *words.counts)
    frequent = tuple(
        Frequency(words.phrases[a], words.groups[a], words.counts[a], 100.0 * words.counts[a] / most) for a in order
    )
    return Card(splits, len(words), frequent, spread(words.counts))


def read_vocabulary(run: str) -> Vocabulary | None:
    store = Store(run)
    return vocabulary.read(store) if store.exists(vocabulary.NAME) else None


def of_split(markers: Markers, split: str) -> SplitCard | None:
    """None where nothing is committed."""
    base, pairs = markers.of(split, "base"), markers.of(split, "pairs")
    if not base.shards:
        return None
    counts = {name: pairs.counts[name] for name in ("mentions", "regions", "pairs") if name in pairs.counts}
    try:
        digest = manifest.read(StageFolder(f"{markers.run}/{split}", "base")).digest
    except ShardError:  # not complete yet
        digest = ""
    return SplitCard(split, base.shards, base.samples, base.bytes, sum(base.refused.values()), counts, digest)


def spread(counts: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """How many attributes are mentioned how often, by powers of ten; empty ranges at the ends are left out."""
    found = [(low, high, sum(low <= c and (high is None or c <= high) for c in counts)) for low, high in DECADES]
    while found and not found[-1][2]:
        found.pop()
    while found and not found[0][2]:
        found.pop(0)
    return tuple((_range(low, high), n) for low, high, n in found)


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} or more"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
