"""Finding attributes in text, and the vocabulary that names them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ShardError, VillaError
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.attributes.extract import PhraseMatcher, sentences, tokens

PHRASES = ["ear", "light", "traffic light", "red traffic light pole", "straße", "café", "x-ray", "red"]
MATCHER = PhraseMatcher(PHRASES)


def found(text: str) -> list[str]:
    return [PHRASES[i] for i in MATCHER.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an early bear heard clearly", []),
        ("the ear.", ["ear"]),
        ("Ear first", ["ear"]),
        ("EAR", ["ear"]),
        ("(ear), 'ear' and \"ear\"", ["ear", "ear", "ear"]),
        ("a traffic light and a light", ["traffic light", "light"]),
        ("a red traffic light", ["red", "traffic light"]),
        ("a red traffic light pole", ["red traffic light pole"]),
        ("red traffic red traffic light pole", ["red", "red traffic light pole"]),
        ("traffic, light", ["traffic light"]),
        ("traffic lights", []),
        ("light red", ["light", "red"]),
        ("red_light", ["red", "light"]),
        ("an X-Ray of the ray", ["x-ray"]),
        ("", []),
        ("...", []),
        ("die STRASSE, Straße", ["straße", "straße"]),
        ("cafe\u0301 café CAFÉ", ["café", "café", "café"]),
        ("\uff32\uff25\uff24 \uff52\uff45\uff44", ["red", "red"]),
        ("ﬁre red", ["red"]),
    ],
)
def test_phrases_are_found_on_word_boundaries_leftmost_longest(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_a_ligature_and_its_letters_are_one_word() -> None:
    assert PhraseMatcher(["fire"]).find("ﬁre FIRE") == [0, 0]


@given(st.text(max_size=60))
def test_a_text_and_its_normal_forms_mention_the_same(text: str) -> None:
    said = MATCHER.find(text)
    assert said == MATCHER.find(unicodedata.normalize("NFD", text)) == MATCHER.find(unicodedata.normalize("NFC", text))
    assert all(token for token in tokens(text))


@given(st.lists(st.sampled_from(["red", "traffic", "light", "pole", "ear", "early", "."]), max_size=12))
def test_the_matcher_equals_a_plain_search(words: list[str]) -> None:
    known = {tuple(tokens(p)): p for p in PHRASES}
    plain, at = [], 0
    kept = [w for w in words if w != "."]
    while at < len(kept):
        best = max((k for k in known if tuple(kept[at : at + len(k)]) == k), key=len, default=None)
        plain += [known[best]] if best else []
        at += len(best) if best else 1
    assert found(" ".join(words)) == plain


def test_equal_phrases_are_the_first_one() -> None:
    assert PhraseMatcher(["Red", "red", "RED."]).find("red") == [0]


@pytest.mark.parametrize("phrase", ["", " ", "...", "_"])
def test_a_phrase_without_a_word_is_named(phrase: str) -> None:
    with pytest.raises(ValueError, match="phrase 1 is"):
        PhraseMatcher(["red", phrase])


def test_attributes_come_with_the_first_sentence_that_says_them() -> None:
    text = "A light. The Ear is red!\nAnother red ear"
    said = MATCHER.attributes(text)
    assert said.ids.tolist() == [0, 1, 7]
    assert said.sentences == ("The Ear is red!", "A light", "The Ear is red!")
    empty = MATCHER.attributes("nothing here")
    assert (empty.ids.tolist(), empty.sentences) == ([], ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the color is red . there is a circle", ["the color is red", "there is a circle"]),
        ("One. Two! Three? Four; five", ["One", "Two!", "Three?", "Four;", "five"]),
        ("first line\nsecond line\r\n\r\nthird", ["first line", "second line", "third"]),
        ("version 2.5 is out", ["version 2.5 is out"]),
        ("  . . ", []),
        ("", []),
        ("no end", ["no end"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet=st.sampled_from("ab .!?;\n"), max_size=40))
def test_sentences_lose_no_word(text: str) -> None:
    assert [w for s in sentences(text) for w in tokens(s)] == tokens(text)


GIVEN: list[dict[str, object]] = [
    {"phrase": "red", "group": "colour", "prompts": ["the color is red"]},
    {"phrase": "rare"},
    {"phrase": "ear", "group": "", "prompts": []},
]


def test_a_vocabulary_keeps_what_occurs_often_enough() -> None:
    made = vocabulary.build(GIVEN, Counter({0: 5, 1: 1, 2: 2}), 2)
    assert (made.phrases, made.groups, made.counts) == (("red", "ear"), ("colour", "all"), (5, 2))
    assert made.prompts == (("the color is red",), ("ear",))
    with pytest.raises(VillaError, match=r"none of the 3 phrases .* 9 or more texts.*min_count"):
        vocabulary.build(GIVEN, Counter({0: 5}), 9)


def test_a_vocabulary_survives_its_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ShardError, match=r"vocabulary\.parquet does not exist"):
        vocabulary.read(store)
    made = vocabulary.build(GIVEN, Counter({0: 5, 1: 1, 2: 2}), 1)
    vocabulary.write(store, made, {"vocabulary.min_count": 1})
    assert vocabulary.choice(store) == {"vocabulary.min_count": 1}
    assert vocabulary.read(store) == made
    assert len(made) == 3


def test_its_fingerprint_names_ids_phrases_and_prompts() -> None:
    made = vocabulary.build(GIVEN, Counter({0: 5, 1: 1, 2: 2}), 1)
    recounted = vocabulary.build(GIVEN, Counter({0: 7, 1: 9, 2: 2}), 1)
    assert recounted.fingerprint == made.fingerprint
    others = [
        vocabulary.build(GIVEN[::-1], Counter({0: 1, 1: 1, 2: 1}), 1),
        vocabulary.build(GIVEN, Counter({0: 5, 2: 2}), 1),
        vocabulary.build([{**GIVEN[0], "prompts": ["red"]}, *GIVEN[1:]], Counter({0: 5, 1: 1, 2: 2}), 1),
    ]
    assert len({v.fingerprint for v in [made, *others]}) == 4
