"""Phrases found in texts without a list."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from villa_dist.attributes import mining
from villa_dist.attributes.lists import read_list
from villa_dist.attributes.mining import Tally, candidates, mine, phrases
from villa_dist.attributes.phrases import key
from villa_dist.attributes.words import words

TEXTS = [
    "A woman with a red umbrella stands by a fire hydrant.",
    "Two red umbrellas, and a fire hydrant on the street",
    "The fire hydrant is red; a teddy bear sits on it",
    "A teddy bear in the street. Red street!",
    "teddy bears and umbrellas in the fire",
    *(f"thing{n} with nothing" for n in range(30)),
]


def said(tally: Tally, min_count: int = 2, top: int = 100) -> dict[str, int]:
    return {m.phrase: m.count for m in phrases(tally, min_count, top)}


def test_runs_end_at_function_words_stops_and_sentences() -> None:
    found = [" ".join(g) for g in candidates(words("A big red car, parked near two old trees. Houses"), 2)]
    assert found == ["big", "big red", "red", "red car", "car", "old", "old tree", "tree", "house"]


def test_texts_are_counted_once_and_plurals_are_one_phrase() -> None:
    tally = mine(["Dogs and a dog and dogs", "a dog"], 3)
    assert tally.texts == 2
    assert tally.counts[("dog",)] == 2


def test_parts_of_a_phrase_give_way_to_it_where_they_hardly_stand_alone() -> None:
    found = said(mine(TEXTS, 3))
    assert found["teddy bear"] == 3
    assert "teddy" not in found and "bear" not in found and "hydrant" not in found
    assert found["fire hydrant"] == 3
    assert found["red"] == 4 and found["umbrella"] == 3


def test_words_that_meet_by_chance_are_no_phrase() -> None:
    texts = [f"{a} {b}" for a in ("red", "blue") for b in ("car", "house")] * 5
    assert set(said(mine(texts, 2))) == {"red", "blue", "car", "house"}


def test_the_rarest_are_dropped_when_there_are_too_many_and_never_counted_wrongly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mining, "MOST", 40)
    texts = [f"common thing{i % 7} rare{i}" for i in range(300)]
    tally = mine(texts, 1)
    assert len(tally.counts) <= 40 and tally.floor >= 1
    true = Counter(w for t in texts for w in set(t.split()))
    assert all(count <= true[phrase] for phrase, count in said(tally, 1).items())
    assert said(tally)["common"] == 300


def test_real_captions_give_names_of_things(shared_data: Path) -> None:
    """Most of the 300 most used phrases of COCO's captions are in lists of nouns and adjectives that nobody mined."""
    text = shared_data / "text"
    given = json.loads((text / "coco_captions_val2017_without_heldout.json").read_text())["annotations"]
    found = phrases(mine([c["caption"] for c in given[:8000]], 3), 5, 300)
    lists = (text / "lvis_22k_categories.json", text / "openimages_categories.json", text / "wordnet31/index.adj")
    known = {key(p.phrase) for each in lists for p in read_list(str(each)).phrases}
    missing = [m.phrase for m in found if key(m.phrase) not in known]
    assert len(missing) < 0.35 * len(found), missing
