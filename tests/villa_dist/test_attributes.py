"""Finding attributes in text: word boundaries, number, hyphens, stops, spans, scripts, size."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.attributes.extract import PhraseMatcher, sentence_spans, sentences, tokens
from villa_dist.attributes.phrases import key
from villa_dist.docmnist import words as docmnist

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
        ("traffic lights", ["traffic light"]),
        ("the lights' ears, and a light's ear", ["light", "ear", "light", "ear"]),
        ("light red", ["light", "red"]),
        ("red_light", ["red", "light"]),
        ("an X-Ray of the ray, x ray", ["x-ray", "x-ray"]),
        ("", []),
        ("...", []),
        ("die STRASSE, Straße", ["straße", "straße"]),
        ("cafe\u0301 café CAFÉ", ["café", "café", "café"]),
        ("\uff32\uff25\uff24 \uff52\uff45\uff44", ["red", "red"]),
        ("ﬁre red", ["red"]),
        ("r\u00aded e\u200dar", ["red", "ear"]),  # soft hyphen, joiner
        ("\x00red\x07ear\x1b", ["red", "ear"]),
        ("👍🏽red🔥ear", ["red", "ear"]),
    ],
)
def test_phrases_are_found_on_word_boundaries_leftmost_longest(text: str, expected: list[str]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "traffic, light",
        "traffic. Light",
        "traffic\nlight",
        "traffic (light)",
        "traffic: light",
        "traffic - light",
        "traffic – light",
    ],
)
def test_no_phrase_reaches_over_a_comma_or_a_sentence(text: str) -> None:
    assert found(text) == ["light"]
    assert found("St. traffic light, Dr. traffic light") == ["traffic light"] * 2, "no sentence ends at St."
    assert PhraseMatcher(["St. Bernard"]).find("A St. Bernard and a St Bernard") == [0, 0]
    assert PhraseMatcher(["salt, pepper"]).find("salt, pepper. salt pepper") == [0, 0], "but for a phrase that has one"


@pytest.mark.parametrize(
    ("phrase", "texts", "others"),
    [
        (
            "black-and-white",
            ["black and white", "Black-And-White", "black & white"],
            ["black white", "black, and white"],
        ),
        ("black and white", ["black-and-white", "black and whites"], ["blackandwhite"]),
        ("woman", ["women", "a woman's", "women's", "WOMEN’S"], ["womanly"]),
        ("opacity", ["opacities"], ["opaque"]),
        ("dress", ["dresses"], ["dressed", "dressing", "address"]),
        ("watch", ["watches"], ["watching", "watched"]),
        ("leaf", ["leaves"], ["leafy"]),
        ("foot", ["feet"], ["footage"]),
        ("bus", ["buses", "bus"], ["us"]),
        ("skis", ["ski", "skis"], ["skiing"]),
        ("short", ["short"], ["shorts"]),
        ("medium", ["medium"], ["media"]),
        ("istanbul", ["İstanbul", "ISTANBUL", "istanbul", "ıstanbul"], []),
        ("fire", ["ﬁre", "FIRE"], []),
        ("ΐος", ["ΐοσ", "Ϊ́ΟΣ", unicodedata.normalize("NFD", "ΐος")], ["ιος"]),
        ("हिन्दी", ["वह हिन्दी है"], ["हिन्द"]),
        ("红色", ["一辆红色的车", "紅。红色！"], ["红的色", "红。色"]),
        ("แมว", ["มีแมวสองตัว"], ["แม่ว"]),
        ("ネコ", ["白いネコがいる", "ﾈｺ"], ["ネズミ"]),
        ("빨간 자동차", ["빨간 자동차 두 대", unicodedata.normalize("NFD", "빨간 자동차")], ["빨간자동차"]),
    ],
)
def test_what_counts_as_the_same_phrase(phrase: str, texts: list[str], others: list[str]) -> None:
    matcher = PhraseMatcher([phrase])
    for text in texts:
        assert len(matcher.find(text)) == 1, text
    for text in others:
        assert matcher.find(text) == [], text


def test_of_two_numbers_of_a_word_a_text_mentions_the_one_it_spells() -> None:
    matcher = PhraseMatcher(["glass", "glasses", "wine glass"])
    assert matcher.find("a glass, glasses and wine glasses, GLASS'S") == [0, 1, 2, 0]
    assert PhraseMatcher(["glasses", "glass"]).find("glass glasses") == [1, 0]
    assert PhraseMatcher(["dog's"]).find("dogs dog") == [0, 0]


def test_synonyms_are_their_phrase_and_a_phrase_wins_over_a_synonym() -> None:
    matcher = PhraseMatcher(["grey", "pale", "gray stone"], [["gray", "pale"], [], []])
    assert matcher.find("gray grey pale gray stones") == [0, 0, 1, 2]


@given(st.text(max_size=60))
def test_a_text_and_its_normal_forms_mention_the_same(text: str) -> None:
    said = MATCHER.find(text)
    assert said == MATCHER.find(unicodedata.normalize("NFD", text)) == MATCHER.find(unicodedata.normalize("NFC", text))
    assert all(token for token in tokens(text))


def test_equal_phrases_are_the_first_one() -> None:
    assert PhraseMatcher(["Red", "red", "RED."]).find("red") == [0]


@pytest.mark.parametrize("phrase", ["", " ", "...", "_", "🔥", "\u0301"])
def test_a_phrase_without_a_word_is_named(phrase: str) -> None:
    with pytest.raises(ValueError, match="phrase 1 is"):
        PhraseMatcher(["red", phrase])


def test_no_phrases_find_nothing() -> None:
    assert PhraseMatcher([]).mentions("red") == []


def test_mentions_say_where_in_the_original_they_are() -> None:
    text = "\ufeffﬁre!\n\nA red café’s ﬁre; Cafe\u0301s.  RE\u00adD"
    matcher = PhraseMatcher(["fire", "café", "red"])
    said = matcher.mentions(text)
    assert [(m.attribute, text[m.start : m.stop], m.sentence) for m in said] == [
        (0, "ﬁre", 0),
        (2, "red", 1),
        (1, "café", 1),
        (0, "ﬁre", 1),
        (1, "Cafe\u0301s", 2),
        (2, "RE\u00adD", 3),
    ]
    assert [text[a:b] for a, b in sentence_spans(text)] == ["ﬁre!", "A red café’s ﬁre;", "Cafe\u0301s", "RE\u00adD"]


def test_attributes_come_with_their_first_place() -> None:
    text = "A light. The Ear is red!\nAnother red ear"
    said = MATCHER.attributes(text)
    assert said.ids.tolist() == [0, 1, 7]
    assert [text[a:b] for a, b in said.spans] == ["Ear", "light", "red"]
    assert said.spans[:, 0].tolist() == [13, 2, 20]
    empty = MATCHER.attributes("nothing here")
    assert (empty.ids.tolist(), empty.spans.shape) == ([], (0, 2))


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
    assert [text[a:b] for a, b in sentence_spans(text) if a < b] == expected


@given(st.text(alphabet=st.sampled_from("ab .!?;\n"), max_size=40))
def test_sentences_lose_no_word(text: str) -> None:
    assert [w for s in sentences(text) for w in tokens(s)] == tokens(text)
    assert [w for a, b in sentence_spans(text) for w in key(text[a:b])] == list(key(text))


def test_docmnist_attributes_are_what_they_spell() -> None:
    """No lemma merges two of the twenty, or finds one in the template of another."""
    matcher = PhraseMatcher(docmnist.ATTRIBUTES)
    for index, (name, prompts) in enumerate(zip(docmnist.ATTRIBUTES, docmnist.PROMPTS, strict=True)):
        assert matcher.find(name) == [index]
        assert all(matcher.find(prompt) == [index] for prompt in prompts)


HOSTILE = {
    "marks": "e" + "\u0301\u0316" * 120_000,
    "one word": "a" * 80_000,
    "apostrophes": "a'" * 120_000,
    "dots": "." * 80_000,
    "spaces": " " * 80_000,
    "breaks": "red. " * 60_000,
    "mixed": "é'́" * 80_000,
    "hyphens": " -" * 120_000,
    "ligatures": "ﬁ" * 80_000,
    "nos": "no red " * 40_000,
    "versus": "red versus " * 25_000,
    "leads": "is " * 80_000 + "not seen",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_long_texts_take_linear_time(name: str) -> None:
    """A quadratic step would take eight times as long again; the bound leaves room for a loaded machine."""
    matcher = PhraseMatcher([*PHRASES, "no", "a a a a b"], negation="reports")
    text = HOSTILE[name]

    def seconds(said: str) -> float:
        start = time.process_time()
        matcher.mentions(said)
        return time.process_time() - start

    matcher.mentions("é")  # tables are made once
    assert seconds(text) < max(24 * seconds(text[: len(text) // 8]), 1.0)
