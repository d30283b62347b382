"""Average precision: against the official tools as they come, on their reference data and on random hard cases."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from villa_dist.evaluate import ap_bootstrap
from villa_dist.evaluate.average_precision import AveragePrecision, by_group, merge, summary
from villa_dist.evaluate.coco_engine import coco_average_precision, coco_table
from villa_dist.evaluate.detection import Detections, capped, prepared, split
from villa_dist.evaluate.detection_files import read_detections, read_truth, to_rows
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.lvis_engine import lvis_average_precision, lvis_prepared, lvis_table
from villa_dist.evaluate.matching import outcomes

ENGINES = ("fast", "faster-coco-eval", "official")
COCO_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def pycocotools_alone(truth: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """pycocotools from JSON to figures without a line of ours."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        engine = COCOeval(coco, coco.loadRes(copy.deepcopy(rows)), "bbox")
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    return dict(zip((*COCO_STATS, "AR1", "AR10", "AR"), map(float, engine.stats[:9]), strict=True))


def lvis_alone(
    truth: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(np, "float", float, raising=False)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    given_truth = LVIS(str(tmp_path / "truth.json"))
    engine = LVISEval(given_truth, LVISResults(given_truth, copy.deepcopy(rows)), "bbox")
    engine.run()
    return {
        ("AR" if k == "AR@300" else k): float(v) for k, v in engine.results.items() if "@" not in k or k == "AR@300"
    }


def random_case(seed: int, *, lvis: bool = False, dense: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Few images and categories, boxes on a coarse grid, scores of few values: ties everywhere. Some images are empty,
    some boxes have no width, areas are not the boxes', detections are jittered truth or noise."""
    r = np.random.default_rng(seed)
    images, categories = int(r.integers(1, 8)), int(r.integers(1, 5))
    ids = r.choice(10**6, images, replace=False).tolist()

    def box() -> list[float]:
        return [float(v) for v in (*r.integers(0, 12, 2) * 10, *r.integers(0, 12, 2) * 10)]

    true = [
        {
            "id": n,  # 0 too: the tools take it for "unmatched"
            "image_id": int(r.choice(ids)),
            "category_id": int(r.integers(1, categories + 1)),
            "bbox": box(),
            "area": float(r.choice([100, 1024, 5000, 9216, 20000])),
            "iscrowd": int(r.random() < 0.2),
        }
        for n in range(1, int(r.integers(1, 30)))
    ]
    scores = r.choice([0.1, 0.3, 0.5, 0.7, 0.9], 3) if r.random() < 0.5 else r.random(200)
    rows = []
    for _ in range(int(r.integers(600, 1500)) if dense else int(r.integers(1, 120))):
        near = true[int(r.integers(len(true)))] if true and r.random() < 0.6 else None
        found = box() if near is None else (np.array(near["bbox"]) + r.choice([0, 0, 1, 4], 4)).tolist()
        image = near["image_id"] if near and r.random() < 0.9 else int(r.choice(ids))
        category = near["category_id"] if near and r.random() < 0.9 else int(r.integers(1, categories + 1))
        rows.append({"image_id": image, "category_id": category, "bbox": found, "score": float(r.choice(scores))})

    def some() -> list[int]:
        return [int(c) for c in range(1, categories + 1) if r.random() < 0.4]

    extra = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {
        "images": [{"id": i} | ({k: some() for k in extra} if lvis else {}) for i in ids],
        "categories": [
            {"id": c, "name": f"c{c}"} | ({"frequency": "rcf"[c % 3]} if lvis else {}) for c in range(1, categories + 1)
        ],
        "annotations": true,
    }, rows


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    for name in found.keys() & expected.keys():
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_coco_engines_equal_pycocotools_and_each_other(seed: int) -> None:
    raw_truth, raw = random_case(seed)
    truth, found = read_truth(raw_truth), read_detections(raw)
    expected = pycocotools_alone(raw_truth, raw)
    for engine in ENGINES:
        as_they_came = coco_average_precision(truth, found, engine=engine, ties="input").metrics
        same(as_they_came, expected)
    *others, official = (coco_average_precision(truth, found, engine=e) for e in ENGINES)
    for other in others:
        same(other.metrics, official.metrics)
        np.testing.assert_allclose(other.table.precision, official.table.precision, atol=1e-12)
        np.testing.assert_allclose(other.table.recall, official.table.recall, atol=1e-12)


def test_lvis_engines_equal_lvis_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = 0
    for seed in range(14):
        raw_truth, raw = random_case(seed, lvis=True)
        truth, found = read_truth(raw_truth), read_detections(raw)
        expected = lvis_alone(raw_truth, raw, tmp_path, monkeypatch)
        with monkeypatch.context() as without:
            without.delattr(np, "float")  # our engine must not need the test's crutch
            for engine in ENGINES:
                same(lvis_average_precision(truth, found, engine=engine, ties="input").metrics, expected)
            *others, official = (lvis_average_precision(truth, found, engine=e) for e in ENGINES)
        for other in others:
            assert set(other.metrics) == {*COCO_STATS, "APr", "APc", "APf", "AR"}
            np.testing.assert_allclose(other.table.precision, official.table.precision, atol=1e-12)
        judged += len(lvis_prepared(truth, found, 300)[1]) < len(found)
    assert judged > 5  # the federated rule was at work


@pytest.mark.parametrize("seed", range(3))
def test_the_cap_on_an_image_comes_first(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of detections an image: LVIS' own cap at 300, and COCO's at 100 a category without one."""
    raw_truth, raw = random_case(seed, lvis=True, dense=True)
    truth, found = read_truth(raw_truth), read_detections(raw)
    assert np.unique(found.image, return_counts=True)[1].max() > 300 or len(truth.images) > 4
    expected = lvis_alone(raw_truth, raw, tmp_path, monkeypatch)
    for engine in ENGINES:
        same(lvis_average_precision(truth, found, engine=engine, ties="input").metrics, expected)
        same(
            coco_average_precision(truth, found, engine=engine, ties="input").metrics,
            pycocotools_alone(raw_truth, raw),
        )
    small = [coco_average_precision(truth, found, engine=e, per_image=7) for e in ENGINES]
    same(small[0].metrics, small[2].metrics)
    same(small[1].metrics, small[2].metrics)
    assert small[0].metrics["AR"] < coco_average_precision(truth, found).metrics["AR"]


@pytest.mark.parametrize("lvis", [False, True])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_cannot_matter(lvis: bool, seed: int) -> None:
    raw_truth, raw = random_case(seed, lvis=lvis)
    r = np.random.default_rng(seed)
    evaluate: Callable[..., AveragePrecision] = lvis_average_precision if lvis else coco_average_precision
    expected = evaluate(read_truth(raw_truth), read_detections(raw), per_image=9).table
    shuffled = {k: [v[i] for i in r.permutation(len(v))] for k, v in raw_truth.items()}
    rows = [raw[i] for i in r.permutation(len(raw))]
    found = evaluate(read_truth(shuffled), read_detections(rows), per_image=9).table
    np.testing.assert_array_equal(found.precision, expected.precision)
    np.testing.assert_array_equal(found.recall, expected.recall)


@pytest.mark.parametrize("lvis", [False, True])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 9))
def test_shards_of_categories_merge_to_the_whole(lvis: bool, seed: int, parts: int) -> None:
    raw_truth, raw = random_case(seed, lvis=lvis)
    truth, found = read_truth(raw_truth), read_detections(raw)
    if lvis:
        truth, found = lvis_prepared(truth, found, 20)
        whole, tables = lvis_table(truth, found), [lvis_table(*s) for s in split(truth, found, parts)]
    else:
        truth, found = prepared(truth, found, 20)
        whole, tables = coco_table(truth, found), [coco_table(*s) for s in split(truth, found, parts)]
    assert 1 <= len(tables) <= parts
    merged = merge(tables[::-1])
    np.testing.assert_array_equal(merged.category, whole.category)
    np.testing.assert_array_equal(merged.precision, whole.precision)
    np.testing.assert_array_equal(merged.recall, whole.recall)
    assert summary(merged, truth).metrics == summary(whole, truth).metrics
    if len(tables) > 1:
        with pytest.raises(EvaluationError, match="in two shards"):
            merge([tables[0], tables[0]])


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), lvis=st.booleans())
def test_the_bootstraps_precision_equals_the_engines(seed: int, lvis: bool) -> None:
    raw_truth, raw = random_case(seed, lvis=lvis)
    truth, found = read_truth(raw_truth), read_detections(raw)
    if lvis:
        true, rows = lvis_prepared(truth, found, 300)
        expected, cap = lvis_table(true, rows).precision[:, 0], None
    else:
        true, rows = prepared(truth, found, None)
        expected, cap = coco_table(true, rows).precision[:, 0], 100
    once = np.ones((1, len(truth.images)), np.int64)
    plain = [
        ap_bootstrap.weighted_precision(o, once, range(10))[0]
        for o in outcomes(true, rows, per_category=cap, lvis=lvis)
    ]
    np.testing.assert_allclose(np.array(plain), expected, atol=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_a_weighted_image_counts_as_often_as_copies_of_it_would(seed: int) -> None:
    raw_truth, raw = random_case(seed)
    r = np.random.default_rng(seed)
    for row in raw:
        row["score"] = float(r.random())  # copies tie only with each other
    truth, found = prepared(read_truth(raw_truth), read_detections(raw), None)
    weights = r.integers(0, 3, len(truth.images))
    copies: dict[str, list[Any]] = {"images": [], "annotations": [], "rows": []}
    for image, times in zip(truth.images.tolist(), weights.tolist(), strict=True):
        for n in range(times):
            other = image * 10 + n
            copies["images"].append({"id": other})
            copies["annotations"] += [
                a | {"image_id": other} for a in raw_truth["annotations"] if a["image_id"] == image
            ]
            copies["rows"] += [d | {"image_id": other} for d in raw if d["image_id"] == image]
    literal = coco_average_precision(
        read_truth({**copies, "categories": raw_truth["categories"]}), read_detections(copies["rows"])
    )
    weighted = [
        ap_bootstrap.weighted_precision(o, weights[None], range(10))[0]
        for o in outcomes(truth, found, per_category=100, lvis=False)
    ]
    np.testing.assert_allclose(np.array(weighted), literal.table.precision[:, 0], atol=1e-12)


def test_a_detector_that_finds_nothing() -> None:
    raw_truth, _ = random_case(3, lvis=True)
    truth = read_truth(raw_truth)
    truth = replace(truth, crowd=np.zeros(len(truth.image), bool))
    for evaluate in (coco_average_precision, lvis_average_precision):
        *others, official = (evaluate(truth, Detections.none(), engine=e) for e in ENGINES)
        for other in others:
            assert other.metrics == official.metrics
            assert other.metrics["AP"] == 0.0
            np.testing.assert_array_equal(other.table.precision, official.table.precision)
    nothing = read_truth({**raw_truth, "annotations": []})
    found = read_detections([{"image_id": int(truth.images[0]), "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    for engine in ENGINES:
        assert coco_average_precision(nothing, found, engine=engine).metrics["AP"] == -1.0
        assert lvis_average_precision(nothing, found, engine=engine).metrics["APf"] == -1.0


def stats_of(path: Path) -> Any:
    """The JSON line the reference files end in."""
    return json.loads(re.findall(r"^\{.*\}$", path.read_text(), re.MULTILINE)[-1])


@pytest.mark.parametrize(
    ("engine", "ties"), [("fast", "box"), ("fast", "input"), ("faster-coco-eval", "box"), ("official", "box")]
)
def test_reference_results_of_coco(shared_data: Path, engine: str, ties: str) -> None:
    official = shared_data / "evalref/coco_official"
    cases = [
        (
            official / "instances_val2014_100.json",
            official / "instances_val2014_fakebbox100_results.json",
            official / "bbox_pycocotools.txt",
        ),
        (
            shared_data / "natural/annotations.json",
            shared_data / "evalref/fastestdet_on_natural_results.json",
            shared_data / "evalref/fastestdet_annotations_pycocotools.txt",
        ),
    ]
    for truth, found, reference in cases:
        metrics = coco_average_precision(read_truth(truth), read_detections(found), engine=engine, ties=ties).metrics
        expected = stats_of(reference)["stats"]
        assert [metrics[k] for k in COCO_STATS] == pytest.approx(expected[:6], abs=1e-6)
        assert metrics["AR"] == pytest.approx(expected[8], abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_reference_results_of_lvis(shared_data: Path, engine: str) -> None:
    truth = read_truth(shared_data / "lvis/lvis_val_100.json")
    found = read_detections(shared_data / "evalref/lvis/detections.json")
    metrics = lvis_average_precision(truth, found, engine=engine).metrics
    expected = stats_of(shared_data / "evalref/lvis/lvis_0.5.3_bbox.txt")
    same(metrics, expected)
    assert metrics["APr"] == 0.0
    assert metrics["AR"] == pytest.approx(expected["AR@300"])


def test_novel_and_base_by_hand() -> None:
    """One category found, one missed, one without boxes."""
    boxes = [{"id": n, "image_id": 1, "category_id": n, "bbox": [0, 0, 10, 10], "area": 100} for n in (1, 2)]
    truth = read_truth({"images": [{"id": 1}], "categories": [{"id": n} for n in (1, 2, 3)], "annotations": boxes})
    found = read_detections([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 6], "score": 0.3}])
    result = coco_average_precision(truth, found)
    assert result.metrics["AP50"] == pytest.approx(0.5)
    assert result.metrics["AP"] == pytest.approx(0.5 * 3 / 10)  # IoU .6: thresholds .5, .55, .6
    groups = by_group(result.table, {"base": np.array([1, 3]), "novel": np.array([2])})
    assert [groups[g]["AP50"] for g in ("base", "novel", "all")] == pytest.approx([1.0, 0.0, 0.5])
    with pytest.raises(EvaluationError, match="category 9"):
        by_group(result.table, {"novel": np.array([9])})


def test_only_some_categories_and_images() -> None:
    raw_truth, raw = random_case(11)
    truth, found = read_truth(raw_truth), read_detections(raw)
    chosen = truth.categories[:1]
    some = truth.only(chosen)
    kept = found.take(np.isin(found.category, chosen))
    assert some.images.tolist() == truth.images.tolist()
    np.testing.assert_array_equal(
        coco_average_precision(some, kept).table.precision[0], coco_average_precision(truth, found).table.precision[0]
    )
    fewer = truth.only(chosen, drop_empty_images=True)
    assert set(fewer.images) == set(truth.image[truth.category == chosen[0]])
    with pytest.raises(EvaluationError, match="category 77 is not in the truth"):
        truth.only(np.array([77]))


def test_the_cap_keeps_the_best_and_breaks_ties_by_category_then_size() -> None:
    rows = [(1, 2, 10, 0.5), (1, 1, 10, 0.5), (1, 1, 20, 0.5), (1, 3, 1, 0.9), (2, 1, 1, 0.1)]
    found = read_detections(
        [{"image_id": i, "category_id": c, "bbox": [0, 0, w, w], "score": s} for i, c, w, s in rows]
    )
    kept = capped(found, 2)
    assert [(r["image_id"], r["category_id"], r["bbox"][2]) for r in to_rows(kept)] == [
        (1, 3, 1),
        (1, 1, 20),
        (2, 1, 1),
    ]
    assert [r["category_id"] for r in to_rows(capped(found, 2, ties="input"))] == [3, 2, 1]
    assert len(capped(Detections.none(), 5)) == 0
    with pytest.raises(EvaluationError, match="at least 1"):
        capped(found, 0)


BAD = {
    "nan box": ({"bbox": [0, 0, float("nan"), 1]}, r"detection 1 \(image 1, category 1\): box .*finite"),
    "infinite box": ({"bbox": [0, float("inf"), 1, 1]}, "four finite numbers"),
    "nan score": ({"score": float("nan")}, "score nan: a score must be a finite number"),
    "negative width": ({"bbox": [5, 5, -2, 1]}, "a width or height is negative"),
    "unknown image": ({"image_id": 8}, "image 8: no such image in the truth"),
    "unknown category": ({"category_id": 5}, "category 5: not in the truth"),
}


@pytest.mark.parametrize("evaluate", [coco_average_precision, lvis_average_precision])
@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD.keys())
def test_detections_that_cannot_be_judged_are_named(evaluate: Any, change: dict[str, Any], says: str) -> None:
    extra = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth = read_truth(
        {
            "images": [{"id": 1, **extra}],
            "categories": [{"id": 1, "frequency": "r"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
        }
    )
    good = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
    with pytest.raises(EvaluationError, match=says):
        evaluate(truth, read_detections([good, good | change]))


def test_other_refusals() -> None:
    raw_truth, raw = random_case(5)
    truth, found = read_truth(raw_truth), read_detections(raw)
    with pytest.raises(EvaluationError, match="no LVIS truth"):
        lvis_average_precision(truth, found)
    with pytest.raises(EvaluationError, match="unknown engine 'cuda'"):
        coco_average_precision(truth, found, engine="cuda")
    with pytest.raises(EvaluationError, match="ties is 'random'"):
        coco_average_precision(truth, found, ties="random")
    with pytest.raises(EvaluationError, match="score column of shape"):
        coco_average_precision(truth, replace(found, score=found.score[:-1]))
    with pytest.raises(EvaluationError, match="parts is 0"):
        split(truth, found, 0)
