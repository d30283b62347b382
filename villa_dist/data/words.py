"""Left and right in texts, exchanged where an image is mirrored. Pure; doing it twice gives the text back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int

from shards.errors import VillaError
from villa_dist.attributes.words import SPACELESS

SIDES = (("left", "right"), ("leftmost", "rightmost"), ("leftward", "rightward"), ("leftwards", "rightwards"))
# where a word of SIDES, written as *, is none of space; both are left alone there, so that an exchange can be undone
GUARDS = (
    "* now",
    "* away",
    "* after",
    "* before",
    "* over",
    "* behind",
    "* alone",
    "* off",
    "* unattended",
    "* angle",
    "* angles",
    "* angled",
    "all *",
    "has *",
    "have *",
    "had *",
    "been *",
)
NONE = -1  # of an attribute that has no counterpart


class Sides:
    """Pairs of words that change places in a mirrored image, as whole words and in the case they are written in.

    Words of scripts without spaces are found inside others. guards: phrases with * for any of the words.
    Raises: VillaError for a word that is in two pairs, and for a guard without exactly one *.
    """

    def __init__(self, pairs: Sequence[Sequence[str]] = SIDES, guards: Sequence[str] = GUARDS) -> None:
        folded = [(pair[0].casefold(), pair[1].casefold()) for pair in pairs]
        every = [word for pair in folded for word in pair]
        if any(len(pair) != 2 for pair in pairs) or len(set(every)) != len(every) or not all(every):
            raise VillaError(f"augment.sides: {list(pairs)!r} must be pairs of words, each word in one pair only")
        self.pairs, self.guards = tuple(folded), tuple(guards)
        self._other = dict(folded) | {b: a for a, b in folded}
        for guard in guards:
            before, star, after = guard.partition("*")
            if not star or "*" in after or not (before + after).strip():
                raise VillaError(f"augment.side_guards: {guard!r} must be words with one * for left or right")
            if set(re.findall(r"\w+", (before + after).casefold())) & set(every):
                raise VillaError(f"augment.side_guards: {guard!r} holds a word of augment.sides; write * for it")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted(self._other, key=len, reverse=True)
        return re.compile("|".join(_bounded(word) for word in words) or r"(?!)", re.IGNORECASE)

    @cached_property
    def _guarded(self) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
        """What must end before the word and begin after it."""
        parts = [guard.split("*") for guard in self.guards]
        return [(_around(0, before), _around(1, after)) for before, after in parts]

    def swapped(self, text: str) -> str:
        return self._pattern.sub(self._swap, text)

    def _swap(self, found: re.Match[str]) -> str:
        word = found[0]
        other = self._like(word)
        if self._like(other) != word:  # iN ODD case
            return word
        before, after = found.string[: found.start()][-40:], found.string[found.end() :][:40]
        if any(b.search(before) and a.match(after) for b, a in self._guarded):
            return word
        return other

    def _like(self, word: str) -> str:
        """The word's counterpart, in its case."""
        other = self._other.get(word.casefold(), word)
        if word.islower():
            return other.lower()
        if word.isupper():
            return other.upper()
        return other[:1].upper() + other[1:].lower() if word.istitle() else other

    def counterparts(self, phrases: Sequence[str]) -> Int[np.ndarray, " V"]:
        """Of each attribute the one it is in a mirrored image: itself where its phrase names no side, and NONE where no
        attribute has the exchanged phrase."""
        number: dict[str, int] = {}
        for i, phrase in enumerate(phrases):
            number.setdefault(phrase.casefold(), i)
        other = [self.swapped(phrase) for phrase in phrases]
        return np.array(
            [
                i if o == p else number.get(o.casefold(), NONE)
                for i, (p, o) in enumerate(zip(phrases, other, strict=True))
            ],
            np.int64,
        )


def _bounded(word: str) -> str:
    if re.fullmatch(f"[{SPACELESS}]+", word):
        return re.escape(word)
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _around(side: int, part: str) -> re.Pattern[str]:
    """Words before (side 0) or after (side 1) a gap; none: anything."""
    words = r"[\s-]+".join(re.escape(w) for w in part.split())
    if not words:
        return re.compile("")
    said = rf"(?<!\w){words}[\s-]+\Z" if side == 0 else rf"[\s-]+{words}(?!\w)"
    return re.compile(said, re.IGNORECASE)
