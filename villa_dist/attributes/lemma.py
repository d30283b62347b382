"""The form under which a word is looked up: nouns in the plural become singular, everything else stays as it is.

Full lemmas lose precision where attributes are mostly names of things: "dressed" would be said to mention "dress",
"parked" "park", "watching" "watch" (docs/log.md has the figures).
"""

from __future__ import annotations

from simplemma import lemmatize

PLURAL_ENDINGS = (
    "s",
    "men",
    "ae",
    "i",
    "ia",
    "ria",
    "feet",
    "teeth",
    "geese",
    "mice",
    "lice",
    "children",
    "oxen",
    "dice",
)
# What simplemma takes for other words.
EXCEPTIONS = {
    "leaves": "leaf",
    "calves": "calf",
    "hooves": "hoof",
    "axes": "axe",
    **{w: w for w in ("media", "shorts", "us", "is", "was", "has", "does", "as", "its", "his", "this", "yes", "less")},
}


def lemma(word: str) -> str:
    """`word` as `words.words` gives it."""
    if word in EXCEPTIONS:
        return EXCEPTIONS[word]
    if len(word) < 3 or not word.endswith(PLURAL_ENDINGS):
        return word
    return str(lemmatize(word, lang="en"))
