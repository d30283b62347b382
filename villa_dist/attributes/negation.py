"""Which mentions a report or a caption denies, and which it is unsure of, by cues in its sentences.

In the manner of NegEx and ConText (Chapman et al. 2001; Harkema et al. 2009): a cue reaches forward or backward over
the mentions of its sentence until something ends its scope; in captions a comma, colon, bracket or dash does. The cues
are in `cues.yaml` and `cues_captions.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import yaml
from ahocorasick_rs import AhoCorasick, MatchKind

from villa_dist.attributes.words import BREAK, STOP, word, words

Style = Literal["reports", "captions"]
TABLES: dict[Style, Path] = {
    "reports": Path(__file__).with_name("cues.yaml"),
    "captions": Path(__file__).with_name("cues_captions.yaml"),
}
Kind = Literal["denies_next", "denies_last", "doubts_next", "doubts_last", "doubts_near", "joins", "ends", "leads"]
NEXT = frozenset({"denies_next", "doubts_next"})
LAST = frozenset({"denies_last", "doubts_last", "doubts_near"})
ENDS = frozenset({"ends", "leads"})


class Cue(NamedTuple):
    """A cue in words start to stop (exclusive) of a text."""

    kinds: frozenset[str]
    start: int
    stop: int


@cache
def table(style: Style = "reports") -> dict[tuple[str, ...], frozenset[str]]:
    """The kinds of every cue, by its words."""
    path = TABLES[style]
    kinds: dict[tuple[str, ...], frozenset[str]] = {}
    for kind, cues in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert kind in get_args(Kind), f"{path}: unknown kind of cue {kind!r}"
        for cue in cues:
            said = words(cue)
            kinds[said] = kinds.get(said, frozenset()) | {kind}
    return kinds


class _Symbols(dict[str, str]):
    """The symbol of a token: one character a word of the cues, STOP and BREAK as they are, else a space."""

    CACHED, LONG = 1 << 16, 64

    def __missing__(self, token: str) -> str:
        said = word(token)
        symbol = dict.get(self, said, " ") if said != token else " "
        if len(token) <= self.LONG:
            if len(self) >= self.CACHED:
                return symbol
            self[token] = symbol
        return symbol


class Cues:
    def __init__(self, style: Style = "reports") -> None:
        cues = table(style)
        of_word = {w: chr(0x100 + i) for i, w in enumerate(sorted({w for cue in cues for w in cue}))}
        self._symbols = _Symbols({**of_word, STOP: STOP, BREAK: BREAK})
        patterns = {"".join(of_word[w] for w in cue): kinds for cue, kinds in cues.items()}
        patterns[BREAK] = frozenset({"ends"})
        if style == "captions":
            patterns[STOP] = frozenset({"ends"})
        self._kinds = list(patterns.values())
        self._automaton = AhoCorasick(list(patterns), matchkind=MatchKind.LeftmostLongest)
        first = {cue[:1] for cue, kinds in patterns.items() if kinds & (NEXT | LAST)}
        self._flagging = re.compile(f"[{''.join(sorted(first))}]")  # what a cue that denies or doubts begins with

    def flags(self, said: Sequence[str], places: Sequence[int]) -> list[tuple[bool, bool]] | None:
        """(negated, uncertain) of the tokens (`words.pattern`) at `places`; None for a text without a cue of either.

        Linear in the number of tokens.
        """
        symbols = "".join(map(self._symbols.__getitem__, said))
        if not self._flagging.search(symbols):
            return None
        cues = [Cue(self._kinds[p], a, b) for p, a, b in self._automaton.find_matches_as_indexes(symbols)]
        denied, doubted = [0] * (len(said) + 1), [0] * (len(said) + 1)  # what changes at each word
        for cue, stop, start in zip(cues, ends_of_scopes(symbols, cues), starts_of_scopes(cues), strict=True):
            near = max(start, symbols.rfind(STOP, start, cue.start) + 1) if "doubts_near" in cue.kinds else start
            for kind, a, b in (("next", cue.stop, stop), ("last", start, cue.start), ("near", near, cue.start)):
                for flags, verb in ((denied, "denies"), (doubted, "doubts")):
                    if f"{verb}_{kind}" in cue.kinds and a < b:
                        flags[a] += 1
                        flags[b] -= 1
        no, maybe = list(accumulate(denied)), list(accumulate(doubted))
        return [(no[a] > 0, maybe[a] > 0 and not no[a]) for a in places]


def ends_of_scopes(symbols: str, cues: Sequence[Cue]) -> list[int]:
    """For each cue the word before which its forward scope ends: another clause, or a cue after a comma."""
    ends, limit = [], len(symbols)
    for cue in reversed(cues):
        ends.append(limit)
        if cue.kinds & ENDS or (cue.kinds & NEXT and symbols[cue.start - 1 : cue.start] == STOP):
            limit = cue.start
    return ends[::-1]


def starts_of_scopes(cues: Sequence[Cue]) -> list[int]:
    """For each cue the word at which its backward scope starts. Verbs that lead to it belong to it: "it is | not seen"."""
    starts, limit, led, led_limit = [], 0, -1, 0
    for cue in cues:
        starts.append(led_limit if led == cue.start else limit)
        if "leads" in cue.kinds:
            led, led_limit, limit = cue.stop, starts[-1], cue.stop
        elif cue.kinds & (ENDS | NEXT | LAST):
            limit = cue.stop
    return starts
