"""Zero-shot detection: by hand, against a plain transcription of RegionCLIP's inference, and on real text vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.evaluate.average_precision import by_group
from villa_dist.evaluate.coco_engine import coco_average_precision
from villa_dist.evaluate.detection import Detections
from villa_dist.evaluate.detection_files import read_category_ids, read_truth
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.zero_shot import (
    COCO,
    LVIS,
    ImageRegions,
    class_prompts,
    class_vectors,
    detect,
    ensemble,
    objectness,
    probabilities,
    read_templates,
    top_k,
)
from villa_dist.regions.nms import nms


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union > 0 else 0.0


def plain_nms(boxes: list[list[float]], scores: list[float], limit: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k]) <= limit for k in kept):
            kept.append(i)
    return kept


def boxes_of(r: np.random.Generator, count: int) -> np.ndarray:
    low = r.integers(0, 6, (count, 2)) * 10.0
    return np.concatenate([low, low + r.integers(0, 5, (count, 2)) * 10], 1)


@given(seed=st.integers(0, 10**6), limit=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_nms_equals_a_plain_loop(seed: int, limit: float) -> None:
    r = np.random.default_rng(seed)
    boxes, scores = boxes_of(r, int(r.integers(0, 25))), r.integers(0, 5, 25)[: r.integers(0, 25)] / 4
    n = min(len(boxes), len(scores))
    assert nms(boxes[:n], scores[:n], limit).tolist() == plain_nms(boxes[:n].tolist(), scores[:n].tolist(), limit)


def transcribed(
    boxes: np.ndarray, region: np.ndarray, classes: np.ndarray, logit: np.ndarray | None, protocol: object
) -> list[tuple[int, list[float], float]]:
    """RegionCLIP's inference, box by box: cosine classifier with a zero background row, temperature .01, softmax,
    (probability x raw logit) ** .5, rows with a NaN dropped, threshold, NMS by class, best per image."""
    rows = list(range(len(boxes)))
    if logit is not None:
        rows = plain_nms(boxes.tolist(), logit.tolist(), protocol.proposal_nms)[: protocol.proposals]
    normal = torch.nn.functional.normalize
    weight = torch.cat([normal(torch.tensor(classes), dim=1), torch.zeros(1, classes.shape[1], dtype=torch.float64)])
    candidates: list[tuple[int, list[float], float]] = []
    for i in rows:
        score = torch.softmax(normal(torch.tensor(region[i]), dim=0) @ weight.T / 0.01, 0)
        if logit is not None:
            score = (score * torch.tensor(logit[i])) ** 0.5
        if not torch.isfinite(score).all():
            continue
        candidates += [(c, boxes[i].tolist(), float(score[c])) for c in range(len(classes))]
    candidates = [c for c in candidates if c[2] > protocol.threshold]
    out = []
    for c in range(len(classes)):
        mine = [x for x in candidates if x[0] == c]
        out += [mine[k] for k in plain_nms([m[1] for m in mine], [m[2] for m in mine], protocol.class_nms)]
    return sorted(out, key=lambda x: -x[2])[: protocol.per_image]


@given(seed=st.integers(0, 10**6), mode=st.sampled_from(["truth", "raw_logit"]), per_image=st.sampled_from([3, 100]))
def test_detections_equal_the_transcription(seed: int, mode: str, per_image: int) -> None:
    r = np.random.default_rng(seed)
    count = int(r.integers(0, 20))
    boxes, region, classes = boxes_of(r, count), r.normal(size=(count, 3)), r.normal(size=(4, 3))
    logit = None if mode == "truth" else r.normal(1, 2, count)
    protocol = replace(COCO, objectness="raw_logit", per_image=per_image)
    found = detect(ImageRegions(7, boxes, region, logit), classes, np.array([10, 20, 30, 40]), protocol)
    expected = transcribed(boxes, region, classes, logit, protocol)
    assert len(found) == len(expected)
    assert found.score == pytest.approx([e[2] for e in expected], abs=1e-6)
    right = found.box[:, :2] + found.box[:, 2:]
    mine = zip(found.category.tolist(), found.box[:, :2].tolist(), right.tolist(), strict=True)
    key = [(round(s, 6), c, *low, *high) for s, (c, low, high) in zip(found.score.tolist(), mine, strict=True)]
    assert sorted(key) == sorted((round(s, 6), (c + 1) * 10, *box) for c, box, s in expected)
    assert set(found.image) <= {7}


def test_scores_by_hand() -> None:
    """Cosines .02 and 0 with two classes, background 0: e^2 / (e^2 + 1 + 1)."""
    region = np.array([[0.02, np.sqrt(1 - 0.02**2), 0.0]])
    classes = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    p = probabilities(region, classes)
    assert p[0] == pytest.approx([np.e**2 / (np.e**2 + 2), 1 / (np.e**2 + 2)])
    boxes = np.array([[0.0, 0.0, 10.0, 20.0]])
    half = ImageRegions(1, boxes, region, np.array([0.5]))
    found = detect(half, classes, np.array([3, 4]))
    assert found.score[0] == pytest.approx(np.sqrt(p[0, 0] * 0.5))
    assert found.box[0].tolist() == [0, 0, 10, 20]
    logit = detect(
        replace(half, objectness=np.array([0.0])), classes, np.array([3, 4]), replace(LVIS, objectness="logit")
    )
    assert logit.score == pytest.approx(found.score)  # the sigmoid of 0 is one half
    assert objectness(np.array([-900.0, 0.0, 900.0]), "logit").tolist() == [0.0, 0.5, 1.0]
    raw = detect(
        replace(half, objectness=np.array([-1.0])), classes, np.array([3, 4]), replace(COCO, objectness="raw_logit")
    )
    assert len(raw) == 0
    assert probabilities(np.array([[-1.0, 0.0]]), np.array([[1.0, 0.0]])) == pytest.approx(0.0)  # no overflow


def test_true_boxes_that_overlap_keep_one_detection_a_class() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    classes = np.eye(3)[:2]
    region = np.array([[0.03, 0.0, 1.0], [0.05, 0.0, 1.0], [0.0, 0.05, 1.0]])
    found = detect(ImageRegions(1, boxes, region), classes, np.array([1, 2]))
    best = found.take(found.score > 0.5)
    assert sorted(zip(best.category.tolist(), best.box[:, 3].tolist(), strict=True)) == [(1, 9.0), (2, 10.0)]


def test_prompts_and_ensembles() -> None:
    templates = ("a photo of a {}.", "the {}.")
    assert class_prompts("bow_(weapon)", templates) == ["a photo of a bow (weapon).", "the bow (weapon)."]
    prompts = np.array([[[3.0, 0.0], [0.0, 1.0]]])  # lengths of prompts do not matter
    assert ensemble(prompts)[0] == pytest.approx([np.sqrt(0.5)] * 2)
    seen = []

    def encode(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return np.array([[len(t), 1.0] for t in texts])

    assert class_vectors(["cat", "dog"], templates, encode).shape == (2, 2)
    assert seen[1] == ["a photo of a dog.", "the dog."]
    with pytest.raises(EvaluationError, match="no length"):
        ensemble(prompts * [[[1], [0]]])


def test_templates_are_checked(tmp_path: Path) -> None:
    for content in ("[]", "{}", '["a photo"]', '["{} and {}"]', "[1]", "not json"):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(EvaluationError, match=r"t\.json"):
            read_templates(tmp_path / "t.json")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_templates(tmp_path / "none.json")


def test_real_templates_and_splits(shared_data: Path) -> None:
    text = shared_data / "text"
    assert len(read_templates(text / "openai_imagenet_templates.json")) == 80
    assert len(read_templates(text / "simple_imagenet_templates.json")) == 7
    base, novel = (read_category_ids(text / f"coco_ovd_categories_{s}seen.json") for s in ("", "un"))
    assert (len(base), len(novel), len(np.intersect1d(base, novel))) == (48, 17, 0)


def test_perfect_embeddings_of_real_boxes_and_real_class_vectors(shared_data: Path) -> None:
    """COCO's true boxes with their own class' CLIP vector: AP50 near 1 (class NMS at .5 merges crowded boxes), in the
    generalised 65-way setting; noise lowers it."""
    base, novel = (read_category_ids(shared_data / f"text/coco_ovd_categories_{s}seen.json") for s in ("", "un"))
    truth = read_truth(shared_data / "natural/annotations.json")
    vectors = np.load(shared_data / "text/detic_metadata/coco_clip_a+cname.npy").astype(np.float64)
    chosen = np.sort(np.concatenate([base, novel]))
    classes = vectors[np.searchsorted(truth.categories, chosen)]
    truth = truth.take(np.isin(truth.image, truth.images[:120])).only(chosen, drop_empty_images=True)
    column = np.searchsorted(chosen, truth.category)
    r = np.random.default_rng(0)

    def run(noise: float) -> tuple[dict[str, float], float]:
        own = classes[column] / np.linalg.norm(classes[column], axis=1, keepdims=True)
        region = own + r.normal(0, noise / np.sqrt(own.shape[1]), own.shape)
        parts = []
        for image in truth.images:
            rows = (truth.image == image) & ~truth.crowd
            low = truth.box[rows, :2]
            boxes = np.concatenate([low, low + truth.box[rows, 2:]], 1)
            parts.append(detect(ImageRegions(int(image), boxes, region[rows]), classes, chosen))
        table = coco_average_precision(truth, Detections.join(parts), per_image=100).table
        accuracy = top_k(probabilities(region, classes), column)[~truth.crowd].mean(0)
        assert accuracy[0] <= accuracy[1]
        groups = by_group(table, {"novel": novel, "base": base})
        return {g: v["AP50"] for g, v in groups.items()}, float(accuracy[0])

    clean, accuracy = run(0.0)
    assert accuracy == 1.0
    assert min(clean.values()) > 0.85
    noisy, accuracy = run(3.0)
    assert accuracy < 0.95
    assert noisy["all"] < clean["all"]


def test_top_k_counts_ties_by_expectation() -> None:
    score = np.array([[0.5, 0.5, 0.5, 0.1], [0.9, 0.1, 0.2, 0.3], [0.1, 0.9, 0.8, 0.7]])
    np.testing.assert_allclose(
        top_k(score, np.array([1, 0, 0]), (1, 2, 4)), [[1 / 3, 2 / 3, 1.0], [1, 1, 1], [0, 0, 1]]
    )
    with pytest.raises(EvaluationError, match="labels"):
        top_k(score, np.array([1, 0, 4]))
    with pytest.raises(EvaluationError, match="NaN"):
        top_k(score * np.nan, np.array([1, 0, 0]))


def test_regions_that_cannot_be_detected_are_named() -> None:
    box, one, classes, ids = np.array([[0.0, 0, 4, 4]]), np.ones((1, 2)), np.eye(2), np.array([1, 2])
    good = ImageRegions(5, box, one, np.array([0.3]))
    assert len(detect(good, classes, ids)) == 2
    for change, says in (
        ({"boxes": box * np.nan}, "image 5: a box is not finite"),
        ({"boxes": box[:, [2, 3, 0, 1]]}, "negative size"),
        ({"embeddings": one[:0]}, "do not fit together"),
        ({"embeddings": one * 0}, "no length"),
        ({"objectness": np.array([np.inf])}, "finite objectness"),
        ({"objectness": np.array([4.0])}, "no probability; if these are logits"),
    ):
        with pytest.raises(EvaluationError, match=says):
            detect(replace(good, **change), classes, ids)
    with pytest.raises(EvaluationError, match="must be one of"):
        detect(good, classes, ids, replace(COCO, objectness="odds"))
    empty = ImageRegions(5, box[:0], one[:0], np.zeros(0))
    assert len(detect(empty, classes, ids)) == 0
    assert json.dumps(detect(good, classes, ids).image.tolist()) == "[5, 5]"
