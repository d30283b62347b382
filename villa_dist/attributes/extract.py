"""Finding a vocabulary's phrases in a text: on word boundaries, leftmost-longest, within a sentence.

"ear" is not found in "early"; "traffic light" wins over "light" and is found in "Traffic Lights". Every word of the
vocabulary is one character, every other word a space, so a text becomes a short string that one Aho-Corasick automaton
reads, and a place in it is the number of a word. `words.py` says what a word is, `lemma.py` which words are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from ahocorasick_rs import AhoCorasick, MatchKind

from shards.errors import VillaError
from villa_dist.attributes.fold import fold, folded_text
from villa_dist.attributes.lemma import lemma
from villa_dist.attributes.negation import Cues
from villa_dist.attributes.words import BREAK, POSSESSIVE, STOP, pattern, word, words
from villa_dist.types import AttributeSet

VERSION = 3  # raised when the same texts and phrases would give other mentions
Negation = Literal["none", "reports", "captions"]
TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\s+\.\s+|[\r\n]+")
FIRST_SYMBOL, SURROGATES = 0x100, range(0xD800, 0xE000)
MAX_WORDS = 0x110000 - FIRST_SYMBOL - len(SURROGATES)


def tokens(text: str) -> list[str]:
    """Words as the `words` text tower takes them: hyphens kept, no plural undone."""
    return TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def sentences(text: str) -> list[str]:
    """Non-empty sentences, without surrounding spaces and full stops."""
    parts = (part.strip(" .\t") for part in SENTENCE_END.split(text))
    return [part for part in parts if part]


class Mention(NamedTuple):
    """`attribute` is said in text[start:stop], in the text's sentence number `sentence`.

    negated: the text says it is not there. uncertain: it says it may be there. Both only with cues (`negation.py`).
    """

    attribute: int
    start: int
    stop: int
    sentence: int
    negated: bool = False
    uncertain: bool = False


class PhraseMatcher:
    """Phrase i of `phrases` has id i, and so have `synonyms[i]`. negation: whose cues of denial and doubt are looked for.

    Of phrases that differ in number alone ("glass", "glasses") a text mentions the one it spells, else the first.
    A phrase that is listed twice is the first one; a phrase wins over a synonym of another.
    Raises: ValueError for a phrase or a synonym without a word.
    """

    def __init__(
        self,
        phrases: Sequence[str],
        synonyms: Sequence[Sequence[str]] = (),
        negation: Negation = "none",
    ) -> None:
        self.cues = None if negation == "none" else Cues(negation)
        self._symbols = _Symbols()
        spelled: dict[str, dict[tuple[str, ...], int]] = {}  # symbols of a phrase -> its spellings -> id
        for index, phrase in enumerate(phrases):
            self._add(spelled, phrase, index)
        for index, others in enumerate(synonyms):
            for other in others:
                self._add(spelled, other, index)
        patterns = list(spelled)
        self._first = [next(iter(spelled[p].values())) for p in patterns]
        self._spellings = {i: spelled[p] for i, p in enumerate(patterns) if len(set(spelled[p].values())) > 1}
        self._automaton = AhoCorasick(patterns, matchkind=MatchKind.LeftmostLongest, store_patterns=False)

    def _add(self, spelled: dict[str, dict[tuple[str, ...], int]], phrase: str, index: int) -> None:
        said = words(phrase)
        if not said:
            raise ValueError(f"phrase {index} is {phrase!r}, which holds no word")
        # A phrase with a comma is found with it and without it.
        for spelling in {said: None, tuple(w for w in said if w not in (STOP, BREAK)): None}:
            symbols = "".join([self._symbols.learn(w) for w in spelling])
            spelled.setdefault(symbols, {}).setdefault(spelling, index)

    def find(self, text: str) -> list[int]:
        """Ids in reading order, repeats included; those negated left out."""
        if self.cues:
            return [m.attribute for m in self.mentions(text) if not m.negated]
        folded = folded_text(text)
        said = pattern(folded).findall(folded)
        return [i for i, _, _ in self._matches(said, self._symbols.read(said))]

    def documents(self, text: str) -> tuple[set[int], set[int]]:
        """(ids the text mentions, ids it only denies)."""
        if not self.cues:
            return set(self.find(text)), set()
        found = self.mentions(text)
        said = {m.attribute for m in found if not m.negated}
        return said, {m.attribute for m in found} - said

    def mentions(self, text: str) -> list[Mention]:
        """All mentions in reading order; none overlap."""
        said, symbols, placed = self._placed(text)
        if not placed:
            return []
        sentence_of = sentence_numbers(symbols)
        flags = self.cues.flags(said, [first for _, first, _, _ in placed]) if self.cues else None
        if flags is None:
            return [Mention(i, start, stop, sentence_of[first]) for i, first, start, stop in placed]
        return [
            Mention(i, start, stop, sentence_of[first], *flag)
            for (i, first, start, stop), flag in zip(placed, flags, strict=True)
        ]

    def attributes(self, text: str) -> AttributeSet:
        """The distinct attributes a text mentions, with the place it first mentions each."""
        first: dict[int, tuple[int, int]] = {}
        if self.cues:
            for mention in self.mentions(text):
                if not mention.negated:
                    first.setdefault(mention.attribute, (mention.start, mention.stop))
        else:
            for index, _, start, stop in self._placed(text)[2]:
                first.setdefault(index, (start, stop))
        ids = sorted(first)
        spans = np.array([first[i] for i in ids], np.int32).reshape(-1, 2)
        return AttributeSet(np.array(ids, np.int32), spans)

    def _placed(self, text: str) -> tuple[list[str], str, list[tuple[int, int, int, int]]]:
        """The text's tokens, their symbols, and of every match (id, first token, start, stop) in the text's characters."""
        folded, starts, stops = fold(text)
        found = list(pattern(folded).finditer(folded))
        said = [token.group() for token in found]
        symbols = self._symbols.read(said)
        placed = []
        for index, first, after in self._matches(said, symbols):
            last = found[after - 1]
            end = last.end() - (
                2 if said[after - 1].endswith(POSSESSIVE) else 0
            )  # a possessive 's is no part of a mention
            placed.append((index, first, starts[found[first].start()], stops[end - 1]))
        return said, symbols, placed

    def _matches(self, said: list[str], symbols: str) -> list[tuple[int, int, int]]:
        """(id, first token, token after the last) of every phrase found."""
        found = self._automaton.find_matches_as_indexes(symbols)
        first, spellings = self._first, self._spellings
        if not spellings:
            return [(first[p], a, b) for p, a, b in found]
        matches = []
        for p, a, b in found:
            index = first[p]
            if p in spellings:
                index = spellings[p].get(tuple([word(t) for t in said[a:b]]), index)
            matches.append((index, a, b))
        return matches


class _Symbols(dict[str, str]):
    """The symbol of a token: one character a word of the vocabulary, STOP and BREAK as they are, else a space."""

    CACHED, LONG = 1 << 20, 64

    def __init__(self) -> None:
        super().__init__()
        self._of_lemma: dict[str, str] = {}

    def read(self, said: Sequence[str]) -> str:
        """One character a token."""
        return "".join(map(self.__getitem__, said))

    def learn(self, said: str) -> str:
        if said in (STOP, BREAK):
            return said
        known = len(self._of_lemma)
        if known >= MAX_WORDS:
            raise VillaError(f"the vocabulary has more than {MAX_WORDS:,} different words; shorten vocabulary.lists")
        code = FIRST_SYMBOL + known
        if code >= SURROGATES.start:
            code += len(SURROGATES)
        return self._of_lemma.setdefault(lemma(said), chr(code))

    def __missing__(self, token: str) -> str:
        said = word(token)
        symbol = said if said in (STOP, BREAK) else self._of_lemma.get(lemma(said), " ")
        if len(token) <= self.LONG:
            if len(self) >= self.CACHED:
                self.clear()
            self[token] = symbol
        return symbol


def sentence_numbers(symbols: str) -> Sequence[int]:
    """The number of the sentence each token is in; ends of sentences that follow each other end one."""
    if BREAK not in symbols:
        return bytes(len(symbols))
    numbers, number, begun = [], 0, False
    for symbol in symbols:
        if symbol != BREAK:
            numbers.append(number)
            begun = True
        else:
            numbers.append(number if begun else max(number - 1, 0))
            number, begun = number + begun, False
    return numbers


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence lies in a text, without surrounding spaces and full stops."""
    folded = fold(text)
    found = list(pattern(folded.text).finditer(folded.text))
    bounds: dict[int, tuple[int, int]] = {}
    symbols = "".join(BREAK if word(m.group()) == BREAK else " " for m in found)
    for match, number in zip(found, sentence_numbers(symbols), strict=True):
        start, stop = folded.starts[match.start()], folded.stops[match.end() - 1]
        bounds[number] = (bounds.get(number, (start, stop))[0], stop)
    return [_trimmed(text, *bounds[n]) for n in sorted(bounds)]


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    said = text[start:stop]
    start += len(said) - len(said.lstrip(" .\t\r\n"))
    return start, start + len(text[start:stop].strip(" .\t\r\n"))
