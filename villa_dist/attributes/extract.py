"""Finding a vocabulary's phrases in a text, on token boundaries, leftmost-longest.

"ear" is not found in "early"; "traffic light" wins over "light". Tokens are casefolded NFKC words, so a phrase is
found whatever its case, and at the very start of a sentence too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from villa_dist.types import AttributeSet

TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\s+\.\s+|[\r\n]+")


def tokens(text: str) -> list[str]:
    return TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def sentences(text: str) -> list[str]:
    """Non-empty sentences, without surrounding spaces and full stops."""
    parts = (part.strip(" .\t") for part in SENTENCE_END.split(text))
    return [part for part in parts if part]


class PhraseMatcher:
    """Phrase i of `phrases` has id i. Raises: ValueError for a phrase without a word."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._ids: dict[tuple[str, ...], int] = {}
        self._longest: dict[str, int] = {}  # first token -> tokens of the longest phrase that starts with it
        for index, phrase in enumerate(phrases):
            words = tuple(tokens(phrase))
            if not words:
                raise ValueError(f"phrase {index} is {phrase!r}, which holds no word")
            self._ids.setdefault(words, index)
            self._longest[words[0]] = max(self._longest.get(words[0], 0), len(words))

    def find(self, text: str) -> list[int]:
        """Ids in reading order, repeats included."""
        words = tokens(text)
        found, at = [], 0
        while at < len(words):
            for length in range(min(self._longest.get(words[at], 0), len(words) - at), 0, -1):
                index = self._ids.get(tuple(words[at : at + length]))
                if index is not None:
                    found.append(index)
                    at += length
                    break
            else:
                at += 1
        return found

    def attributes(self, text: str) -> AttributeSet:
        """The distinct attributes a text mentions, with the first sentence that says each."""
        first: dict[int, str] = {}
        for sentence in sentences(text):
            for index in self.find(sentence):
                first.setdefault(index, sentence)
        ids = sorted(first)
        return AttributeSet(np.asarray(ids, np.int32), tuple(first[i] for i in ids))
