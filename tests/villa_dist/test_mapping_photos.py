"""What the benchmark on photos takes for true, held on photos whose captions and boxes were read by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.photo_truth import photos, vocabulary


def test_true_pairs_are_boxes_whose_name_a_caption_mentions(shared_data: Path) -> None:
    phrases = vocabulary(shared_data)
    assert len(phrases) == 80
    found = {int(p.path.stem): p for p in photos(shared_data, phrases, limit=3)}

    def truth(photo: int) -> dict[str, int]:
        names, times = np.unique(found[photo].truth.attribute, return_counts=True)
        return {phrases[i].phrase: int(n) for i, n in zip(names, times, strict=True)}

    # "a woman", "a person", "chairs"; "a television" is no name of "tv", and nobody mentions the clock
    assert truth(139) == {"person": 2, "chair": 5}
    assert truth(285) == {"bear": 1}
    # "four persons sitting on dining table for cake"; the fifteen bottles, forks and cups go unmentioned
    assert truth(790) == {"person": 4, "dining table": 1, "cake": 1}


def test_synonyms_are_those_of_the_same_sense(shared_data: Path) -> None:
    said = {p.phrase: p.synonyms for p in vocabulary(shared_data)}
    assert {"man", "woman", "child"} <= set(said["person"])
    assert "bag" not in said["suitcase"]
    plain = vocabulary(shared_data, synonyms=False)
    assert not any(p.synonyms for p in plain)
