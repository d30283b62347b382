"""Text folded for comparison, with the way back to the characters it came from.

Folding is NFKC, case folding, NFKC again, without invisible characters (soft hyphens, joiners, variation selectors,
direction marks), with typographic apostrophes made straight and the Turkish dotless and dotted i made i.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

# Longer runs of combining marks are folded in pieces, as in Unicode's stream-safe text: ordering a run is quadratic.
MAX_MARKS = 30
LAST_MARK = 0x1FFFF  # but for the variation selectors of plane 14, which are invisible
INVISIBLE = {
    code: ""
    for first, last in (
        *((c, c) for c in (0xAD, 0x34F, 0x61C, 0x180E, 0xFEFF)),
        *((0x200C, 0x200F), (0x202A, 0x202E), (0x2060, 0x2064), (0x2066, 0x206F)),
        *((0x180B, 0x180D), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF)),
    )
    for code in range(first, last + 1)
}
MADE_PLAIN = {**INVISIBLE, 0x2018: "'", 0x2019: "'", 0x2BC: "'", 0x201B: "'", ord("ı"): "i"}


class Folded(NamedTuple):
    """Folded character i came from the original's characters starts[i] to stops[i] (exclusive)."""

    text: str
    starts: Sequence[int]
    stops: Sequence[int]


def fold(text: str) -> Folded:
    """Linear in the length of `text`."""
    if text.isascii():
        return Folded(text.lower(), range(len(text)), range(1, len(text) + 1))
    parts: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    for piece in _pieces().finditer(text):
        said, (start, stop) = piece.group(), piece.span()
        if said.isascii():
            parts.append(said.lower())
            starts.extend(range(start, stop))
            stops.extend(range(start + 1, stop + 1))
        else:
            folded = _folded(said)
            parts.append(folded)
            starts.extend([start] * len(folded))
            stops.extend([stop] * len(folded))
    return Folded("".join(parts), starts, stops)


def folded_text(text: str) -> str:
    """What `fold` gives, without the way back."""
    if text.isascii():
        return text.lower()
    return "".join([p.lower() if p.isascii() else _folded(p) for p in _pieces().findall(text)])


class _FoldCache(dict[str, str]):
    """Pieces are single characters with their marks, so few are met; hostile text must not grow this for ever."""

    LIMIT = 1 << 16

    def __missing__(self, piece: str) -> str:
        if len(self) >= self.LIMIT:
            self.clear()
        cased = unicodedata.normalize("NFKC", piece).casefold().translate(MADE_PLAIN).replace("i\u0307", "i")
        self[piece] = folded = unicodedata.normalize("NFKC", cased)
        return folded


_CACHE = _FoldCache()
_folded: Callable[[str], str] = _CACHE.__getitem__


@cache
def _pieces() -> re.Pattern[str]:
    """Pieces that fold by themselves: ASCII, or one character with what may combine with it."""
    joins = character_class(_joins_what_precedes)
    return re.compile(f"[\\x00-\\x7f]+(?![{joins}])|[^{joins}][{joins}]{{0,{MAX_MARKS}}}|[{joins}]{{1,{MAX_MARKS}}}")


def _joins_what_precedes(char: str) -> bool:
    """Whether normalising may merge or reorder `char` with the characters before it."""
    if ord(char) in INVISIBLE:
        return False
    first = unicodedata.normalize("NFKD", char)[0]
    return unicodedata.combining(first) != 0 or first in _second_of_a_composition()


@cache
def _second_of_a_composition() -> frozenset[str]:
    parts = (unicodedata.decomposition(chr(code)).split() for code in range(0x80, LAST_MARK))
    seconds = {chr(int(p[1], 16)) for p in parts if len(p) == 2 and not p[0].startswith("<")}
    jamo = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
    return frozenset(seconds | {chr(code) for code in jamo})


@cache
def marks() -> str:
    """Combining marks of every script, as the inside of a character class."""
    return character_class(lambda char: unicodedata.category(char).startswith("M"))


def character_class(holds: Callable[[str], bool]) -> str:
    """The inside of a regular expression's character class of all non-ASCII characters for which `holds` is true."""
    ranges: list[list[int]] = []
    for code in (*range(0x80, 0xD800), *range(0xE000, LAST_MARK + 1)):
        if holds(chr(code)):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in ranges)
