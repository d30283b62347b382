"""Phrases that texts use often, found without a list or a model: candidates for a vocabulary, to be read before use.

A candidate is a run of up to `max_words` words within a clause, between function words. It is kept when enough texts use it,
when its words keep each other's company more than chance would have it, and when it is not merely a part of a longer one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from villa_dist.attributes.lemma import lemma
from villa_dist.attributes.words import BREAK, STOP, words

WORDS = Path(__file__).with_name("function_words.txt")
COHESION = 2.0  # bits by which the words of a phrase attract one another
ABSORBED = 0.8  # of a phrase's texts, in which it is part of one longer phrase, make it no phrase of its own
MOST = 2_000_000  # candidates counted; beyond it the rarest half goes

Gram = tuple[str, ...]


@dataclass
class Tally:
    """texts: how many were read; counts: of candidates, texts that use each."""

    texts: int = 0
    counts: Counter[Gram] = field(default_factory=Counter)
    floor: int = 0  # candidates counted so often at most may have been dropped

    def add(self, text: str, max_words: int) -> None:
        self.texts += 1
        self.counts.update(set(candidates(words(text), max_words)))
        if len(self.counts) > MOST:
            ranked = self.counts.most_common(MOST // 2)
            self.floor = max(self.floor, ranked[-1][1])
            self.counts = Counter(dict(ranked))


@dataclass(frozen=True)
class Mined:
    phrase: str
    count: int


@cache
def function_words() -> frozenset[str]:
    lines = [line for line in WORDS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return frozenset(" ".join(lines).split())


def candidates(said: Sequence[str], max_words: int) -> Iterator[Gram]:
    """Every run of words between stops, ends and function words, in singular; digits alone are none."""
    run: list[str] = []
    for word in (*said, BREAK):
        if word in (STOP, BREAK) or word in function_words() or len(word) < 2 or word.isdigit():
            for first in range(len(run)):
                for last in range(first + 1, min(first + max_words, len(run)) + 1):
                    yield tuple(run[first:last])
            run = []
        else:
            run.append(lemma(word))


def mine(texts: Iterable[str], max_words: int) -> Tally:
    tally = Tally()
    for text in texts:
        tally.add(text, max_words)
    return tally


def phrases(tally: Tally, min_count: int, top: int) -> list[Mined]:
    """The `top` most used phrases, most used first, equal ones by their letters."""
    least = max(min_count, tally.floor + 1)
    kept = {g: c for g, c in tally.counts.items() if c >= least and cohesion(g, tally) >= COHESION}
    inside: Counter[Gram] = Counter()
    for gram, count in kept.items():
        for part in {gram[a:b] for a in range(len(gram)) for b in range(a + 1, len(gram) + 1)} - {gram}:
            inside[part] = max(inside[part], count)
    whole = [Mined(" ".join(g), c) for g, c in kept.items() if inside[g] < ABSORBED * c]
    return sorted(whole, key=lambda m: (-m.count, m.phrase))[:top]


def cohesion(gram: Gram, tally: Tally) -> float:
    """log2 of how many times more often the words come together than they would by chance, for each join; a single word
    has all it needs."""
    if len(gram) == 1:
        return math.inf
    chance = math.prod(tally.counts[(word,)] / tally.texts for word in gram)
    return math.log2(tally.counts[gram] / tally.texts / chance) / (len(gram) - 1)
