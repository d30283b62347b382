"""Words and stops of a folded text, sentence by sentence.

A word is a run of letters, digits and their marks, with apostrophes inside; a hyphen or an underscore parts words, and
"&" is the word "and". In scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character
with its marks is a word. A stop (comma, colon, bracket, dash between spaces) is no word, but no phrase reaches across
it. Neither does one across the end of a sentence: . ! ? or ; before a space, an ideographic full stop, a line's end.
"""

from __future__ import annotations

import re
from functools import cache

from villa_dist.attributes.fold import folded_text, marks

SPACELESS = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e50-\u0e5b"  # Thai
    "\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0ed0-\u0edf"  # Lao
    "\u1000-\u102a\u103f-\u1055\u1780-\u17b3"  # Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u309f\u30a1-\u312f\u31a0-\u31ff"  # kana and their kin
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
)
LINE_ENDS = "\r\n\v\f\x1c-\x1e\x85\u2028\u2029"
SENTENCE_ENDS = frozenset(".!?;。｡\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")
STOPS = frozenset(",:()[]{}|-–—•·、«»")
# A full stop after these ends no sentence.
ABBREVIATIONS = ("dr", "mr", "mrs", "ms", "st", "mt", "vs", "e.g", "i.e", "approx")
STOP, BREAK = ",", "\n"  # what every stop and every end of a sentence is called
POSSESSIVE = "'s"

# Every alternative begins with a character, which a pattern can reject at once; what precedes is looked at after.
_NOT_ABBREVIATED = "".join(rf"(?<!\b{re.escape(a)}\.)" for a in ABBREVIATIONS)
_CLOSING = r"[\"')\]]*(?=\s)"
_END = rf"[!?;]{_CLOSING}|\.{_NOT_ABBREVIATED}{_CLOSING}|[{LINE_ENDS}]+"
_STOP = r"[,:()\[\]{}|]|-(?<=\s-)-*(?=\s)"
_ASCII = re.compile(rf"[a-z0-9]+(?:'[a-z0-9]+)*|{_END}|{_STOP}|&")


@cache
def _unicode() -> re.Pattern[str]:
    letter, mark = rf"[^\W_{SPACELESS}]", f"[{marks()}]"
    word = rf"{letter}(?:{letter}+|{mark}+)*"
    ends, stops = rf"{_END}|[。｡]|[!?;](?<=[{SPACELESS}].)", rf"{_STOP}|[–—•·、«»]"
    return re.compile(f"[{SPACELESS}]{mark}*|{word}(?:'{word})*|{ends}|{stops}|&")


def pattern(folded: str) -> re.Pattern[str]:
    """The pattern whose matches are the words, stops and sentence ends of a folded text."""
    return _ASCII if folded.isascii() else _unicode()


def word(token: str) -> str:
    """The word a match of `pattern` is, without a possessive 's; else STOP or BREAK."""
    if token[0] in SENTENCE_ENDS:
        return BREAK
    if token[0] in STOPS:
        return STOP
    if token == "&":
        return "and"
    return token.removesuffix(POSSESSIVE)


def words(text: str) -> tuple[str, ...]:
    """The words of a text, from the first to the last, with the STOPs and BREAKs between them."""
    folded = folded_text(text)
    found = [word(token) for token in pattern(folded).findall(folded)]
    spoken = [i for i, w in enumerate(found) if w not in (STOP, BREAK)]
    return tuple(found[spoken[0] : spoken[-1] + 1]) if spoken else ()
