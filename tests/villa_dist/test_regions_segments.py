"""Segments: the hierarchy against a plain transcription, the integral images, and what is found in drawings and photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from villa_dist.config import RegionsConfig, SegmentsConfig
from villa_dist.regions import objectness as scoring
from villa_dist.regions.backends import make_proposer
from villa_dist.regions.boxes import iou, problem
from villa_dist.regions.hierarchy import Likeness, merge, neighbours
from villa_dist.regions.objectness import NAMES, Shapes, features, integral, scaled, total
from villa_dist.regions.proposals import Photo, regions_of
from villa_dist.regions.segments import WAYS, candidates

CONFIG = RegionsConfig(proposals="segments", top_k=300)


def regions(pixels: np.ndarray, config: RegionsConfig = CONFIG) -> np.ndarray:
    shown = Photo("a", pixels.shape[1], pixels.shape[0], pixels)
    return regions_of(make_proposer(config), config, [shown])[0].regions.boxes


def photo_like(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with a few solid shapes."""
    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.uniform(0, 255, (height, width, 3)), (6, 6, 0))
    ground = (ground - ground.min()) / (np.ptp(ground) + 1e-9) * 120
    for _ in range(5):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        ground[y : y + height // 3, x : x + width // 4] = rng.uniform(0, 255, 3)
    return ground.astype(np.uint8)


# ---- the hierarchy


def plain_merge(labels: np.ndarray, descriptor: np.ndarray, way: Likeness) -> list[frozenset[int]]:
    """Sets of segments in the order they were made, by trying all pairs of neighbours before every merger."""
    nodes = {i: (frozenset([i]), descriptor[i]) for i in range(len(descriptor))}
    made = [nodes[i][0] for i in nodes]

    def mask(parts: frozenset[int]) -> np.ndarray:
        return np.isin(labels, list(parts))

    def alike(a: int, b: int) -> float:
        (pa, da), (pb, db) = nodes[a], nodes[b]
        both = mask(pa | pb)
        ys, xs = np.nonzero(both)
        box = (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
        looks = way.descriptor * np.minimum(da, db).sum() if way.descriptor else 0.0
        return looks - (way.size * both.sum() + way.fill * (box - both.sum())) / labels.size

    while True:
        grown = {a: ndimage.binary_dilation(mask(parts)) for a, (parts, _) in nodes.items()}
        pairs = [(a, b) for a in nodes for b in nodes if a < b and (grown[a] & mask(nodes[b][0])).any()]
        if not pairs:
            return made
        a, b = min(pairs, key=lambda p: (-round(alike(*p), 9), p))
        (pa, da), (pb, db) = nodes.pop(a), nodes.pop(b)
        share = mask(pa).sum() / mask(pa | pb).sum()
        nodes[len(made)] = (pa | pb, da * share + db * (1 - share))
        made.append(pa | pb)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_merging_equals_trying_every_pair(seed: int, way: Likeness) -> None:
    rng = np.random.default_rng(seed)
    seeds = rng.permutation(12 * 14)[:9]
    labels = np.zeros(12 * 14, np.int64)
    labels[seeds] = np.arange(1, 10)
    labels = labels.reshape(12, 14)
    far, nearest = ndimage.distance_transform_cdt(labels == 0, metric="taxicab", return_indices=True)
    labels = labels[tuple(nearest)] - 1  # a Voronoi diagram: each cell is connected
    descriptor = rng.dirichlet(np.ones(6), 9)
    expected = plain_merge(labels, descriptor, way)
    found = merge(labels, descriptor, way)
    assert len(found.boxes) == len(expected) == 17
    for node, parts in enumerate(expected):
        ys, xs = np.nonzero(np.isin(labels, list(parts)))
        assert found.boxes[node].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert found.pixels[node] == len(ys)
        assert found.depth[node] == sum(parts < other for other in expected)
        assert found.leaf[node] == (len(parts) == 1)


def test_neighbours_share_an_edge_not_a_corner() -> None:
    assert neighbours(np.array([[0, 1], [2, 3]]), 4).tolist() == [[0, 1], [0, 2], [1, 3], [2, 3]]
    assert neighbours(np.zeros((3, 3), np.int64), 1).tolist() == []


# ---- measurements


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.3, 0.7, 1, 1.5, 9]),
)
def test_sums_over_boxes_are_those_of_their_pixels(height: int, width: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 9, (height, width, 2))
    corner = rng.integers(0, [width, height], (6, 2))
    boxes = np.concatenate([corner, rng.integers(corner + 1, [width + 1, height + 1])], 1)
    around = scaled(boxes, scale, width, height)
    assert problem(around.astype(float), width, height) == ""
    expected = [planes[y1:y2, x1:x2].sum((0, 1)).tolist() for x1, y1, x2, y2 in around]
    assert total(integral(planes), around).tolist() == expected


def test_measurements_say_what_their_names_say() -> None:
    lab = np.full((40, 60, 3), 128.0)
    lab[10:30, 20:40] = (250, 128, 128)
    edges = np.zeros((40, 60))
    edges[10:30, [20, 39]] = edges[[10, 29], 20:40] = 50
    boxes = np.array([[20, 10, 40, 30], [24, 14, 36, 26], [0, 0, 60, 40], [0, 30, 30, 40]])
    shapes = Shapes(np.array([1.0, 0.5, 1, 1]), np.zeros(4), np.zeros(4))
    found = dict(zip(NAMES, features(boxes, shapes, lab, edges).T, strict=True))
    assert found["contrast near"][0] == pytest.approx(1 / 3), "the lightness differs all around, a and b do not"
    assert found["contrast near"][1] < 0.2 and found["contrast near"][2] == 0, "nothing lies around the whole image"
    assert found["contrast within"].tolist()[:2] == pytest.approx([0, 0], abs=1e-12)
    assert found["edges at the rim"].argmax() == 0
    assert found["edges just outside"][0] == 0
    assert found["edges inside"][2] == pytest.approx(1, abs=0.01)
    assert found["log area"].tolist() == pytest.approx(np.log([400 / 2400, 144 / 2400, 1, 300 / 2400]).tolist())
    assert found["elongation"].tolist() == pytest.approx([0, 0, np.log(1.5), np.log(3)])
    assert found["touches sides"].tolist() == [0, 0, 2, 1]
    assert found["touches top"].tolist() == [0, 0, 1, 0] and found["touches bottom"].tolist() == [0, 0, 1, 1]
    assert found["off centre"].tolist() == pytest.approx([0, 0, 0, 0.25])
    assert np.isfinite(np.stack(list(found.values()))).all()
    assert scoring.objectness(features(boxes, shapes, lab, edges)).dtype == np.float32


# ---- images


def test_a_drawn_object_is_found_exactly() -> None:
    """One disc on a plain ground, in an image larger than what is segmented."""
    ys, xs = np.mgrid[:240, :320]
    pixels = np.full((240, 320, 3), (90, 110, 90), np.uint8)
    pixels[(ys - 130) ** 2 + (xs - 200) ** 2 <= 50**2] = (200, 40, 40)
    off = np.abs(regions(pixels)[:10] - [150, 80, 251, 181]).max(1)
    assert off.min() <= 3


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2), (2, 1), (3, 3), (1, 500), (500, 1), (4, 700), (257, 31), (300, 301)]
)
def test_images_of_any_size_give_boxes_inside(height: int, width: int) -> None:
    boxes = regions(photo_like(height, width))
    assert problem(boxes, width, height) == ""
    assert len(boxes) >= 1


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_image_gives_the_image(value: int) -> None:
    assert regions(np.full((60, 80, 3), value, np.uint8)).tolist() == [[0, 0, 80, 60]]


def test_equal_images_give_equal_boxes_whatever_is_beside_them() -> None:
    images = [photo_like(90, 120, seed) for seed in range(3)]
    proposer = make_proposer(CONFIG)
    photos = [Photo(str(n), 120, 90, p) for n, p in enumerate(images)]
    together = proposer.propose(photos)
    for shown, found in zip(photos, together, strict=True):
        alone = proposer.propose([shown])[0]
        assert np.array_equal(alone.boxes, found.boxes) and np.array_equal(alone.objectness, found.objectness)
    assert not np.array_equal(together[0].boxes, together[1].boxes)


def test_candidates_are_distinct_and_described() -> None:
    boxes, described = candidates(photo_like(200, 260), SegmentsConfig())
    assert described.shape == (len(boxes), len(NAMES)) and np.isfinite(described).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_more_scales_give_more_candidates() -> None:
    pixels = photo_like(200, 260)
    few, many = (candidates(pixels, SegmentsConfig(scales=s))[0] for s in ([200.0], [50.0, 200.0]))
    assert len(many) > len(few)
    assert {tuple(b) for b in few.tolist()} <= {tuple(b) for b in many.tolist()}


def test_half_the_objects_of_real_photos_are_found(shared_data: Path) -> None:
    """The figure of 276 photos is in docs/regions.md; here 24 of them."""
    data = json.loads((shared_data / "natural/annotations_exact.json").read_text())
    boxes: dict[int, list[list[float]]] = {}
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        if not a["iscrowd"]:
            boxes.setdefault(a["image_id"], []).append([x, y, x + w, y + h])
    hits = {30: 0, 300: 0}
    total_boxes = 0
    for image in [i for i in data["images"] if i["id"] in boxes][::12]:
        pixels = np.asarray(Image.open(shared_data / "natural/images" / image["file_name"]).convert("RGB"))
        overlap = iou(np.array(boxes[image["id"]]), regions(pixels).astype(float))
        total_boxes += len(overlap)
        for budget in hits:
            hits[budget] += int((overlap[:, :budget].max(1) >= 0.5).sum())
    assert hits[30] / total_boxes > 0.2
    assert hits[300] / total_boxes > 0.47
