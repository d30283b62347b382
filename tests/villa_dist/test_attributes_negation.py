"""Denial and doubt in reports: sentences made for the purpose, and real reports labelled by hand."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.attributes.extract import PhraseMatcher, sentence_spans
from villa_dist.attributes.lists import read_list
from villa_dist.attributes.negation import table

LABELS = Path(__file__).parent / "labels" / "indiana_mentions.csv"
# {negated}, <uncertain>, [there]
SENTENCES = [
    "No {pleural effusion}.",
    "There is no {pneumothorax} or {pleural effusion}.",
    "No {focal consolidation}, {pneumothorax}, or large {pleural effusion}.",
    "Lungs are clear without {consolidation} or {pneumothorax}.",
    "Negative for {pneumothorax}, {pleural effusion} or {focal consolidation}.",
    "The lungs are free of focal {infiltrates}.",
    "The lungs are clear of {consolidation}.",
    "Patient denies {fracture}.",
    "Absence of {pneumothorax}.",
    "No evidence of {pneumonia} or {effusion}.",
    "There is no focal opacity to suggest {pneumonia}.".replace("opacity", "{opacity}"),
    "Neither {effusion} nor {pneumothorax} is present.",
    "{Effusion} is not seen.",
    "{Pneumothorax} and {effusion} are not identified.",
    "{Pneumonia} has been ruled out.",
    "{Pneumothorax} is ruled out.",
    "The {effusion} has resolved.",
    "Resolved {pneumothorax}.",
    "Interval resolution of left {effusion}.",
    "The {effusion} is no longer visible.",
    "{Effusion}: none.",
    "{Pneumonia} is unlikely.",
    "The [cardiomegaly] is stable and {effusion} is not seen.",
    "[Scarring] rather than {atelectasis}.",
    "Cleared {pneumonia} with residual [scar].",
    "{Effusion} is doubtful.",
    "Doubt {edema}.",
    "[Enlarged heart], otherwise negative.",
    "The PICC line has been removed.".replace("PICC line", "{PICC line}"),
    "It isn’t {pneumonia}.",
    "Heart does not show {cardiomegaly}.",
    "No {effusion} but [atelectasis] at the base.",
    "No {effusion}; [atelectasis] at the base.",
    "No {effusion}. [Atelectasis] at the base.",
    "No {effusion}\n[Atelectasis] at the base",
    "No {effusion}, however there is [atelectasis].",
    "No {pneumothorax} although a small [effusion] remains.",
    "No {pneumothorax} is seen and the [opacity] persists.",
    "No {fracture} with stable [kyphosis].",
    "No {nodule} except for a [granuloma].",
    "No {pneumothorax}, but [effusion] and [atelectasis].",
    "[Cardiomegaly] without {edema}.",
    "[Atelectasis] and no {effusion}.",
    "No change in [cardiomegaly].",
    "No increase in [pleural effusion].",
    "No significant interval change in the [opacity].",
    "Without significant change of the [nodule].",
    "Not only [pneumonia] but also [effusion].",
    "The [effusion] has not resolved.",
    "The [nodule] has not increased.",
    "[Pneumothorax] is present; no {effusion}.",
    "Possible <pneumonia>.",
    "This may represent <atelectasis> or <scarring>.",
    "Cannot exclude <pneumonia>.",
    "<Pneumonia> cannot be excluded.",
    "[Opacity] suspicious for <pneumonia>.",
    "[Opacity] which could be <atelectasis>.",
    "Probable small <effusion> without {pneumothorax}.",
    "No {effusion}, possible <atelectasis>.",
    "Rule out <pneumonia>.",
    "<Atelectasis> versus <scarring>.",
    "Stable [cardiomegaly], <atelectasis> versus <infiltrate>.",
    "<Pneumonia> is possible.",
    "However, a <mass> is not excluded.",
    "[Hyperinflated] lungs with a [granuloma] in the left base.",
    "NO {PNEUMOTHORAX}. HEART SHOWS [CARDIOMEGALY].",
    "[Degenerative changes] of the spine; [cardiomegaly].",
    "Status post median sternotomy with no {edema}.".replace("median sternotomy", "[median sternotomy]"),
]
CAPTIONS = [
    "a man with no {hat}",
    "A girl without a {helmet} on a [skateboard]",
    "no {dogs}, just a [cat]",
    "a [vase] (no {flowers}) on a [bench]",
    "a man with no {hat} and a [helmet]",
    "no {cars} or {trucks} in the street, one [bench]",
    "without {hat}, [gloves] on the floor",
    "a man in a [hat] is not wearing a {helmet}",
    "a [cat] not looking at the [dog]",
    "a [bench] with no one on it, a [dog] below",
    "a no parking [sign] beside a [car]",
    "a no left turn [sign]",
    "there is no {stop sign}",
    "No. 7 [bus]; no 7 [bus]",
    "no-show [socks]",
    "a [bowl], {forks} not included",
    "a set of four ({forks} not included)",
    "{dogs} not allowed on the [bench]",
    "not a {dog} but a [cat]",
    "a [dog] that is not a {cat}",
    "possible [dog]",
]
KINDS = {"{": "negated", "<": "uncertain", "[": "there"}


def unmarked(marked: str) -> tuple[str, list[tuple[int, str]]]:
    """The text without its marks, and where each marked mention starts and what it is."""
    text, expected = "", []
    for char in marked:
        if char in KINDS:
            expected.append((len(text), KINDS[char]))
        elif char not in "}>]":
            text += char
    return text, expected


@pytest.fixture(scope="module")
def findings() -> PhraseMatcher:
    phrases = read_list("chest_xray").phrases
    return PhraseMatcher([p.phrase for p in phrases], [p.synonyms for p in phrases], "reports")


def test_there_are_enough_sentences() -> None:
    assert len(SENTENCES) >= 60 and len(set(SENTENCES)) == len(SENTENCES)


@pytest.mark.parametrize("marked", SENTENCES)
def test_sentences_made_for_the_purpose(marked: str, findings: PhraseMatcher) -> None:
    text, expected = unmarked(marked)
    found = [
        (m.start, "negated" if m.negated else "uncertain" if m.uncertain else "there") for m in findings.mentions(text)
    ]
    assert found == expected
    positive = {m.attribute for m in findings.mentions(text) if not m.negated}
    assert set(findings.find(text)) == positive == set(findings.attributes(text).ids.tolist())
    said, denied = findings.documents(text)
    assert said == positive and not said & denied
    assert said | denied == {m.attribute for m in findings.mentions(text)}


def test_captions_are_taken_at_their_word() -> None:
    assert PhraseMatcher(["hat"]).documents("a man with no hat") == ({0}, set())
    assert PhraseMatcher(["hat"], negation="reports").documents("a man with no hat") == (set(), {0})


@pytest.mark.parametrize("marked", CAPTIONS)
def test_what_captions_deny(marked: str) -> None:
    nouns = "hat helmet skateboard dog cat vase flower bench car truck glove sign bus sock bowl fork"
    matcher = PhraseMatcher([*nouns.split(), "stop sign"], negation="captions")
    text, expected = unmarked(marked)
    assert [(m.start, "negated" if m.negated else "there") for m in matcher.mentions(text)] == expected


def test_a_cue_does_not_reach_into_the_next_sentence(findings: PhraseMatcher) -> None:
    text = "No effusion. Effusion. Not seen. Effusion"
    assert [m.negated for m in findings.mentions(text)] == [True, False, False]


def test_every_cue_is_read_and_kinds_do_not_contradict() -> None:
    assert len(table()) > 200
    for cue, kinds in [*table().items(), *table("captions").items()]:
        assert cue and not ("joins" in kinds and len(kinds) > 1), cue
        assert not {"denies_next", "doubts_next"} <= kinds and not {"denies_last", "doubts_last"} <= kinds, cue


WORDS = st.sampled_from([*{w for cue in table() for w in cue}, "effusion", "mass", ",", ".", "the"])


@given(st.lists(WORDS, max_size=30), st.lists(WORDS, max_size=30))
def test_a_sentence_is_judged_by_itself(first: list[str], second: list[str]) -> None:
    matcher = PhraseMatcher(["effusion", "mass"], negation="reports")
    one, two = " ".join(first).strip(".,"), " ".join(second).strip(".,")
    joined = matcher.mentions(f"{one}\n{two}")
    alone = [*matcher.mentions(one), *matcher.mentions(two)]
    assert [(m.negated, m.uncertain) for m in joined] == [(m.negated, m.uncertain) for m in alone]
    assert not any(m.negated and m.uncertain for m in joined)


def test_labelled_mentions_of_real_reports(shared_data: Path, findings: PhraseMatcher) -> None:
    """316 mentions in other reports than the cues were made on; labels are of one reader."""
    path = shared_data / "cxr_text" / "indiana_reports.csv"
    with path.open(newline="", encoding="utf-8") as file:
        reports = {row["uid"]: row for row in csv.DictReader(file)}
    counts: Counter[tuple[str, str]] = Counter()
    with LABELS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            text, start, stop = reports[row["uid"]][row["field"]], int(row["start"]), int(row["stop"])
            mention = next(m for m in findings.mentions(text) if (m.start, m.stop) == (start, stop))
            assert any(a <= start and stop <= b for a, b in sentence_spans(text))
            found = "negated" if mention.negated else "uncertain" if mention.uncertain else "present"
            counts[row["label"], found] += 1
    assert counts.total() == 316

    def precision_recall(kind: str) -> tuple[float, float]:
        right = counts[kind, kind]
        said = sum(n for (_, found), n in counts.items() if found == kind)
        true = sum(n for (label, _), n in counts.items() if label == kind)
        return right / said, right / true

    assert min(precision_recall("negated")) > 0.98
    assert precision_recall("uncertain") >= (0.9, 0.8)
