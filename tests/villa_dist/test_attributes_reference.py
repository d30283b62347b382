"""The matcher against slow references: texts put together from pieces whose words are known, and a plain search."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.attributes.lemma import lemma
from villa_dist.attributes.words import words

# What is written, and the words it stands for; None ends every phrase, () is nothing at all.
PIECES: list[tuple[str, tuple[str, ...] | None]] = [
    ("red", ("red",)),
    ("RED", ("red",)),
    ("\uff32\uff25\uff24", ("red",)),
    ("light", ("light",)),
    ("Lights", ("light",)),
    ("light’s", ("light",)),
    ("ﬁre", ("fire",)),
    ("fires", ("fire",)),
    ("cafe\u0301", ("café",)),
    ("CAFÉS", ("café",)),
    ("stra\u00adße", ("strasse",)),
    ("Woman", ("woman",)),
    ("women's", ("woman",)),
    ("red-light", ("red", "light")),
    ("&", ("and",)),
    ("and", ("and",)),
    ("İki", ("iki",)),
    ("红光", ("红", "光")),
    ("光", ("光",)),
    ("redlight", ("redlight",)),
    ("🔥", ()),
    ("'", ()),
    ("\x07", ()),
    (",", None),
    ("(", None),
    (". ", None),
    ("\n", None),
    ("—", None),
]
NAMES = sorted({w for _, said in PIECES for w in said or ()})
PHRASES = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple), max_size=12, unique=True)
Place = tuple[int, int, int]


def plain_search(phrases: Sequence[tuple[str, ...]], said: Sequence[str | None]) -> list[Place]:
    """(phrase, first word, word after the last), leftmost-longest, by trying everything everywhere."""
    found, at = [], 0
    while at < len(said):
        fits = [(len(p), i) for i, p in enumerate(phrases) if tuple(said[at : at + len(p)]) == p]
        if fits:
            size, index = max(fits)
            found.append((index, at, at + size))
        at += max(fits)[0] if fits else 1
    return found


@settings(max_examples=150)
@given(PHRASES, st.lists(st.sampled_from(PIECES), max_size=25))
def test_texts_made_of_known_pieces(phrases: list[tuple[str, ...]], pieces: list) -> None:
    text, said, spans = "", [], []
    for written, stands_for in pieces:
        text += " "
        start = len(text)
        text += written
        if stands_for is None:
            said.append(None)
            spans.append((start, start))
        own = len(written) - 2 * written.endswith(("'s", "’s"))
        for number, each in enumerate(stands_for or ()):
            parts = (
                [written[:own]] if len(stands_for) == 1 else (written.split("-") if "-" in written else list(written))
            )
            offset = written.index(parts[number])
            said.append(each)
            spans.append((start + offset, start + offset + len(parts[number])))
    expected = [(i, spans[a][0], spans[b - 1][1]) for i, a, b in plain_search(phrases, said)]
    matcher = PhraseMatcher([" ".join(p) for p in phrases])
    assert [(m.attribute, m.start, m.stop) for m in matcher.mentions(text)] == expected
    assert matcher.find(text) == [i for i, _, _ in expected]


LETTERS = st.text(alphabet=st.sampled_from("abAs é\u0301ß'’ﬁİı-,.。\n一二\u200d½🔥ﾊﾞ가\u11a8ा1"), max_size=30)
ANYTHING = st.one_of(LETTERS, st.text(max_size=30))


@settings(max_examples=300)
@given(st.lists(ANYTHING.filter(lambda t: bool(words(t))), max_size=8), st.lists(ANYTHING, max_size=4), st.data())
def test_any_text(phrases: list[str], parts: list[str], data: st.DataObject) -> None:
    """Phrases are put into the text, so that something is found; text[span] says the phrase."""
    chosen = data.draw(st.lists(st.sampled_from(phrases), max_size=4)) if phrases else []
    text = " ".join(data.draw(st.permutations([*parts, *chosen])))
    matcher = PhraseMatcher(phrases)
    mentions = matcher.mentions(text)
    keys = [tuple(map(lemma, words(p))) for p in phrases]
    assert matcher.find(text) == [m.attribute for m in mentions]
    assert set(matcher.attributes(text).ids.tolist()) == {m.attribute for m in mentions}
    at = 0
    for mention in mentions:
        assert at <= mention.start < mention.stop <= len(text) or text[mention.start : mention.stop] == "½"
        at = mention.start
        said = tuple(map(lemma, words(text[mention.start : mention.stop])))
        key = keys[mention.attribute]
        bare = tuple(w for w in key if w not in ",\n")
        assert any(said[i : i + len(k)] == k for k in (key, bare) for i in range(len(said))), (said, key)


def test_the_plain_search_is_leftmost_longest() -> None:
    assert plain_search([("a",), ("a", "b"), ("b", "c")], ["a", "b", "c", None, "b"]) == [(1, 0, 2)]
