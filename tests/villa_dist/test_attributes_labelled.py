"""Attributes found in 251 captions and 64 reports, held to what a reader finds in them.

What the labels hold to: a listed phrase or synonym counts where it is said in the sense the vocabulary means (NOUNS has
the senses), plurals, spellings and slips of the pen included; of listed phrases inside one another the longer counts
alone; a narrower word that is not listed ("puppy") mentions nothing, nor does a word that only names the kind of another
thing ("bus stop", "women's shoes"); what the text says is absent is not mentioned, what may be there is.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from villa_dist.attributes.extract import Negation
from villa_dist.attributes.lists import read_list
from villa_dist.attributes.phrases import Phrase, merge
from villa_dist.attributes.vocabulary import Vocabulary

LABELS = Path(__file__).parent / "labels"
ADJECTIVES = ("colours", "materials", "patterns", "shapes", "sizes")
# bat: for ball games; bow: a ribbon's; crane: a machine; glass: what windows and drinking vessels are made of, and the
# vessel; glasses: on a nose; light: a lamp; mouse: a computer's; ring, tie, watch: worn; train: on rails.
NOUNS = """
    man, woman, boy, girl, child, baby, dog, cat, horse, bird, sheep, bear, teddy bear, elephant, duck, fish, mouse,
    crane, bat, car, bus, truck, fire truck, bicycle|bike, motorcycle|motorbike, train, boat, airplane|aeroplane|plane,
    skateboard, surfboard, skis, hat, helmet, glasses|eyeglasses, sunglasses, watch, tie, bow, ring, necklace, shirt,
    t-shirt|tee shirt, dress, skirt, jacket, jeans, shorts, shoe, sock, boot, scarf, glove, bag|handbag, backpack,
    umbrella, table, chair|armchair, bench, bed, couch|sofa, lamp, light, traffic light, stop sign, mirror, clock, vase,
    bowl, plate, cup, glass, wine glass, bottle, knife, fork, spoon, pizza, cake, hot dog, apple, banana, laptop,
    phone|cell phone, tree, flower, plant, kite, ball, window, door
"""


class Sample(NamedTuple):
    """`labelled`: texts, each with the names of the attributes it mentions."""

    phrases: Sequence[Phrase]
    negation: Negation
    labelled: list[tuple[str, set[str]]]


class Score(NamedTuple):
    """Of all (text, attribute) pairs together. wrong: one line a text that differs."""

    precision: float
    recall: float
    mentions: int
    wrong: list[str]


def nouns() -> list[Phrase]:
    said = [noun.strip().split("|") for noun in NOUNS.split(",")]
    return [Phrase(first, "noun", synonyms=tuple(others)) for first, *others in said]


@cache
def sample(name: str) -> Sample:
    lists = [read_list(each).phrases for each in (ADJECTIVES if name == "captions" else ["chest_xray"])]
    phrases = merge([nouns(), *lists] if name == "captions" else lists).phrases
    with (LABELS / f"{name}.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    labelled = [(row["text"], {a for a in row["attributes"].split("; ") if a}) for row in rows]
    return Sample(phrases, "captions" if name == "captions" else "reports", labelled)


def score(labelled: list[tuple[str, set[str]]], found_in: Callable[[str], set[str]]) -> Score:
    right = said = true = 0
    wrong = []
    for text, labels in labelled:
        found = found_in(text)
        right, said, true = right + len(found & labels), said + len(found), true + len(labels)
        if found != labels:
            wrong.append(f"{text}\n    too many: {sorted(found - labels)}, missed: {sorted(labels - found)}")
    return Score(right / said, right / true, true, wrong)


def by_matcher(of: Sample) -> Callable[[str], set[str]]:
    """As the stages find them."""
    names, synonyms = tuple(p.phrase for p in of.phrases), tuple(p.synonyms for p in of.phrases)
    size = len(names)
    matcher = Vocabulary(names, ("all",) * size, (1,) * size, tuple((n,) for n in names), synonyms).matcher(of.negation)
    return lambda text: {names[i] for i in matcher.attributes(text).ids.tolist()}


def by_substring(of: Sample) -> Callable[[str], set[str]]:
    said = [(p.phrase, [s.casefold() for s in (p.phrase, *p.synonyms)]) for p in of.phrases]
    return lambda text: {name for name, each in said if any(s in text.casefold() for s in each)}


@pytest.mark.parametrize(("name", "texts", "mentions"), [("captions", 250, 700), ("reports", 60, 120)])
def test_labels_are_of_the_vocabulary(name: str, texts: int, mentions: int) -> None:
    of = sample(name)
    names = {p.phrase for p in of.phrases}
    assert len({text for text, _ in of.labelled}) == len(of.labelled) >= texts
    assert sum(len(labels) for _, labels in of.labelled) >= mentions
    assert {a for _, labels in of.labelled for a in labels} <= names


@pytest.mark.parametrize("name", ["captions", "reports"])
def test_what_a_reader_finds_is_found(name: str) -> None:
    of = sample(name)
    found = score(of.labelled, by_matcher(of))
    assert min(found.precision, found.recall) >= 0.95, "\n".join([f"{found[:3]}", *found.wrong])


@pytest.mark.parametrize("name", ["captions", "reports"])
def test_a_search_for_letters_does_not_find_it(name: str) -> None:
    of = sample(name)
    found = score(of.labelled, by_substring(of))
    assert min(found.precision, found.recall) < 0.9, found[:3]
