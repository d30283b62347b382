"""Phrases against hard negatives, and retrieval of a class: by hand, by brute force, and what the loaders refuse."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.evaluate import fine_grained
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.fine_grained import (
    PhraseRanks,
    macro,
    phrase_ranks,
    phrase_scores,
    precision_at,
    read_labels,
)
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.phrases import read_phrases


def test_ranks_by_hand() -> None:
    score = np.array([[0.9, 0.1, 0.2], [0.1, 0.5, 0.5], [0.5, 0.5, 0.1], [0.3, 0.3, 0.3], [0.2, 0.9, 0.2]])
    found = phrase_ranks(score)
    assert found.rank.tolist() == [1.0, 3.0, 1.5, 2.0, 2.5]
    assert found.top1.tolist() == pytest.approx([1.0, 0.0, 0.5, 1 / 3, 0.0])
    assert found.worst_rank.tolist() == [1.0, 3.0, 2.0, 3.0, 3.0]
    assert found.metrics == pytest.approx({"mean_rank": 2.0, "top1": 11 / 30, "mean_rank_ties_lost": 2.4})


@given(row=st.lists(st.integers(0, 2), min_size=2, max_size=6))
def test_ties_count_by_expectation(row: list[int]) -> None:
    ranks = [
        1 + sorted(order, key=lambda i: -row[i]).index(0) for order in itertools.permutations(range(len(row)))
    ]  # stable: equal scores stay in the permuted order
    found = phrase_ranks(np.array([row], float))
    assert found.rank[0] == pytest.approx(np.mean(ranks))
    assert found.top1[0] == pytest.approx(np.mean([r == 1 for r in ranks]))


def test_a_box_is_scored_against_its_own_phrases() -> None:
    region, phrase = np.eye(3)[:2], np.stack([np.eye(3)[[0, 1]], np.eye(3)[[2, 1]]])
    assert phrase_scores(region, phrase).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert phrase_scores(region[:0], phrase[:0]).shape == (0, 2)


@pytest.mark.parametrize("bad", [np.array([[np.nan, 1.0]]), np.array([[1.0]]), np.array([1.0, 2.0])])
def test_scores_that_cannot_be_ranked(bad: np.ndarray) -> None:
    with pytest.raises(EvaluationError):
        phrase_ranks(bad)


def test_fgovd_rows_on_real_data(shared_data: Path) -> None:
    sizes = {}
    for path in sorted((shared_data / "attributes").glob("fgovd_*.jsonl")):
        rows = read_phrases(path)
        sizes[path.name[6]] = len(rows)
        assert {len(r.phrases) for r in rows} == {11}
        assert phrase_ranks(np.eye(11)[np.zeros(len(rows), int)]).metrics["top1"] == 1.0
    assert sizes == {"h": 137, "m": 96, "e": 30}


ROW = {"img_path": "a.jpg", "bbox": [1, 2, 3, 4], "pos_expression": ["a red cup"], "neg_expression": ["blue", "green"]}


@pytest.mark.parametrize(
    "change",
    [
        {"neg_expression": ["blue"]},
        {"neg_expression": ["blue", "blue"]},
        {"neg_expression": ["blue", "a red cup"]},
        {"neg_expression": ["blue", " "]},
        {"pos_expression": ["a", "b"]},
        {"bbox": [1, 2, 0, 4]},
        {"bbox": [1, 2, 3]},
        {"bbox": ["x", 2, 3, 4]},
        {"img_path": None, "bbox": None},
    ],
)
def test_rows_that_are_no_fair_question_are_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(EvaluationError, match=r"rows.jsonl:3: "):
        read_phrases(path, negatives=2)
    path.write_text(json.dumps(ROW) + "\n")
    assert read_phrases(path, negatives=2)[0].phrases == ("a red cup", "blue", "green")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="UTF-8"):
        read_phrases(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_phrases(tmp_path / "none.jsonl")


def test_precision_at_k_by_hand() -> None:
    target = np.eye(4)[[0, 0, 1, 2]]  # the first two are equal
    label = np.array([0, 1, 0, 1])
    query = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = precision_at(query, target, np.array([0, 1]), label, ks=(1, 2, 4))
    assert found[0].tolist() == [0.5, 0.5, 0.5]
    # query 1: target 3 first, then 0, 1, 2 tied, one of three of its class
    assert found[1].tolist() == pytest.approx([1.0, (1 + 1 / 3) / 2, 0.5])
    assert macro(np.array([1.0, 0.0, 0.0]), np.array([0, 1, 1])) == 0.5
    assert np.isnan(macro(np.zeros(0), np.zeros(0, int)))


def test_precision_at_k_equals_a_plain_loop() -> None:
    r = np.random.default_rng(0)
    query, target = r.normal(size=(2, 1100, 5))
    query, target = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, target))
    a, b = r.integers(0, 5, (2, 1100))
    found = precision_at(query, target, a, b, ks=(5, 100))
    for q in (0, 3, 1023, 1024, 1099):
        order = np.argsort(-(target @ query[q]))
        assert found[q].tolist() == pytest.approx([(b[order[:k]] == a[q]).mean() for k in (5, 100)])
    with pytest.raises(EvaluationError, match="ks are"):
        precision_at(query, target, a, b, ks=(1101,))
    with pytest.raises(EvaluationError, match="as many labels"):
        precision_at(query, target, a[:-1], b)


def test_labels_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("Path,Edema,Atelectasis,Other\nb.jpg,1.0,0,5\na.jpg,,1,\n", encoding="utf-8-sig")
    found = read_labels(path, key="Path", classes=("Atelectasis", "Edema"))
    assert (found.keys, found.label.tolist(), found.classes) == (("b.jpg", "a.jpg"), [1, 0], ("Atelectasis", "Edema"))
    for text, says in (
        ("Path,Edema\na,1\n", "no column 'Atelectasis'; it has Path, Edema"),
        ("Path,Edema,Atelectasis\na,1,1\n", "csv:2: 2 classes are 1"),
        ("Path,Edema,Atelectasis\na,0,\n", "csv:2: 0 classes are 1"),
        ("Path,Edema,Atelectasis\na,-1,1\n", "must be 0, 1 or empty"),
        ("Path,Edema,Atelectasis\na,0,1\na,1,0\n", "'a' occurs more than once"),
        ("", "no column 'Path'"),
        ("Edema,Atelectasis,Path\n0,1,a\n1,0\n", "csv:3: 2 cells where the first line has 3 columns"),
        ("Path,Edema,Atelectasis\na,b.jpg,0,1\n", "csv:2: 4 cells where the first line has 3 columns"),
        ("Path,Edema,Atelectasis\n ,0,1\n", "csv:2: Path is empty"),
        ("Path,Edema,Edema,Atelectasis\na,0,1,1\n", "2 columns are called 'Edema'"),
    ):
        path.write_text(text)
        with pytest.raises(EvaluationError, match=says):
            read_labels(path, key="Path", classes=("Atelectasis", "Edema"))


def test_targets_are_converted_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(0)
    query, target = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (r.normal(size=(9, 4)), r.normal(size=(50, 4)))
    )
    a, b = r.integers(0, 3, 9), r.integers(0, 3, 50)
    whole, sizes, plain = precision_at(query, target, a, b, ks=(1, 7)), [], fine_grained.similarity

    def watched(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        sizes.append(len(other))
        return plain(one, other)

    monkeypatch.setattr(fine_grained, "similarity", watched)
    monkeypatch.setattr(fine_grained, "TARGETS", 8)
    assert np.array_equal(precision_at(query, target, a, b, ks=(1, 7)), whole) and max(sizes) == 8 and sum(sizes) == 50


FOLDERS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@given(paths=st.lists(FOLDERS, max_size=6), key=FOLDERS)
def test_a_path_is_found_as_by_looking_at_all(paths: list[str], key: str) -> None:
    parts = [(n, path.split("/"), key.split("/")) for n, path in enumerate(paths)]
    right = [n for n, a, b in parts if a[-len(b) :] == b[-len(a) :]]
    if len(right) > 1:
        with pytest.raises(EvaluationError, match="could be"):
            ImageNames(paths).find(key)
    else:
        assert ImageNames(paths).find(key) == (right[0] if right else None)


def test_many_images_of_one_file_name_are_found_soon() -> None:
    """A look at all of them for each would be 400 million comparisons."""
    began = time.process_time()
    paths = [f"patient{n:05d}/study1/view1_frontal.jpg" for n in range(20_000)]
    names = ImageNames(paths)
    assert [names.find(f"train/{p[:-4]}") for p in paths] == list(range(20_000))
    assert time.process_time() - began < 10


def test_many_labels_that_occur_twice_are_named_soon(tmp_path: Path) -> None:
    rows = "".join(f"{n},0,1\n" for n in range(50_000))
    (tmp_path / "l.csv").write_text(f"key,a,b\n{rows}99,1,0\n")
    began = time.process_time()
    with pytest.raises(EvaluationError, match="key '99' occurs more than once"):
        read_labels(tmp_path / "l.csv", key="key", classes=("a", "b"))
    assert time.process_time() - began < 10


def test_chance_among_phrases_is_what_equal_scores_get() -> None:
    by_chance = PhraseRanks.by_chance(np.array([2, 11, 5]))
    for n, phrases in enumerate((2, 11, 5)):
        equal = phrase_ranks(np.zeros((1, phrases)))
        assert (by_chance.rank[n], by_chance.top1[n]) == (equal.rank[0], equal.top1[0])
