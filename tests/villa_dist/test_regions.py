"""Regions: what is kept of proposals, grids, given boxes, and the config's refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.decode import DecodeError
from shards.errors import ShardError
from villa_dist.config import RegionsConfig
from villa_dist.config_base import ConfigError
from villa_dist.config_file import load
from villa_dist.regions.annotations import AnnotationProposer, boxes_in
from villa_dist.regions.backends import BACKENDS, make_proposer
from villa_dist.regions.boxes import clip, from_centers, iou, large_enough, problem
from villa_dist.regions.proposals import Photo, keep, regions_of
from villa_dist.types import RegionSet

F32 = np.float32


def raw(boxes: list[list[float]], scores: list[float] | None = None) -> RegionSet:
    return RegionSet(np.array(boxes, F32).reshape(-1, 4), np.array(scores or [1.0] * len(boxes), F32))


def kept(
    boxes: list[list[float]], scores: list[float] | None = None, size: tuple[int, int] = (100, 50), **config: Any
) -> Any:
    ranked = config.pop("ranked", True)
    return keep(raw(boxes, scores), RegionsConfig(**config), Photo("a", *size), ranked=ranked)


# ---- boxes


def test_boxes_are_clipped_to_the_image() -> None:
    found = clip(np.array([[-5, -5, 5, 5], [90, 40, 120, 80], [120, 0, 130, 10]], F32), 100, 50)
    assert found.tolist() == [[0, 0, 5, 5], [90, 40, 100, 50], [100, 0, 100, 10]]


def test_sides_are_measured_and_empty_boxes_are_never_large_enough() -> None:
    boxes = np.array([[0, 0, 4, 9], [0, 0, 0, 9], [5, 5, 2, 9]], F32)
    assert large_enough(boxes, 0.0).tolist() == [True, False, False]
    assert large_enough(boxes, 4.0).tolist() == [True, False, False]
    assert large_enough(boxes, 4.1).tolist() == [False] * 3
    assert large_enough(np.zeros((0, 4), F32), 1.0).tolist() == []


def test_centres_become_corners() -> None:
    assert from_centers(np.array([[10.0, 20, 4, 6]])).tolist() == [[8, 17, 12, 23]]


# ---- what is kept


ANY_BOXES = hnp.arrays(F32, st.tuples(st.integers(0, 12), st.just(4)), elements=st.floats(-300, 300, width=32))
SIDE = st.integers(1, 200)


@given(
    boxes=ANY_BOXES,
    width=SIDE,
    height=SIDE,
    ranked=st.booleans(),
    whole=st.booleans(),
    least=st.sampled_from([0.0, 0.1, 7.0]),
    top_k=st.integers(1, 5),
    data=st.data(),
)
def test_what_is_kept_is_always_usable(
    boxes: np.ndarray, width: int, height: int, ranked: bool, whole: bool, least: float, top_k: int, data: st.DataObject
) -> None:
    scores = data.draw(hnp.arrays(F32, len(boxes), elements=st.floats(0, 1, width=32)))
    config = RegionsConfig(keep_whole_image=whole, min_size=least, top_k=top_k, nms_iou=0.5)
    found = keep(RegionSet(boxes, scores), config, Photo("a", width, height), ranked=ranked)
    regions = found.regions
    assert problem(regions.boxes, width, height) == ""
    assert regions.boxes.dtype == regions.objectness.dtype == F32
    assert len(regions.boxes) == len(regions.objectness)
    assert found.dropped == sum(1 for x1, y1, x2, y2 in clip(boxes, width, height) if x2 <= x1 or y2 <= y1)
    if whole:
        assert (regions.boxes == np.array([0, 0, width, height], F32)).all(1).sum() >= 1
    if not ranked:
        assert len(regions.boxes) - (len(boxes) - found.dropped) in (0, int(whole))
        return
    real = regions.boxes[: len(regions.boxes) - int(whole)] if whole else regions.boxes
    assert len(real) <= top_k
    assert regions.objectness[: len(real)].argmax() == 0 if len(real) else True
    side = (real[:, 2:] - real[:, :2]).min(1) if len(real) else np.zeros(0)
    assert (side >= (least * min(width, height) if least < 1 else least)).all()
    overlap = iou(real.astype(np.float64), real.astype(np.float64)) - np.eye(len(real))
    assert overlap.max(initial=0) <= 0.5 + 1e-5


def test_the_best_are_kept_in_order_of_objectness() -> None:
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [21, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]
    found = kept(boxes, [0.1, 0.5, 0.9, 0.3, 0.2], top_k=3)
    assert found.regions.boxes[:, 0].tolist() == [21, 40, 60]
    assert found.regions.objectness.tolist() == pytest.approx([0.9, 0.3, 0.2])
    assert found.dropped == 0


def test_min_size_is_a_fraction_or_pixels_of_the_shorter_side() -> None:
    boxes = [[0, 0, 50, 4], [0, 10, 50, 16]]  # of an image 100 x 50
    assert len(kept(boxes, min_size=0.1).regions.boxes) == 1
    assert len(kept(boxes, min_size=0.0).regions.boxes) == 2
    assert len(kept(boxes, min_size=4.0).regions.boxes) == 2
    assert len(kept(boxes, min_size=6.5).regions.boxes) == 0


def test_given_boxes_are_neither_ranked_nor_thinned() -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 50, 50], [0, 0, 50, 50]]
    found = kept(boxes, top_k=1, min_size=20.0, ranked=False)
    assert found.regions.boxes.tolist() == boxes


def test_the_whole_image_comes_last_and_once() -> None:
    found = kept([[0, 0, 10, 10]], [0.9], keep_whole_image=True).regions
    assert found.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 100, 50]]
    assert found.objectness.tolist() == pytest.approx([0.9, 0])
    assert kept([[-3, -3, 200, 200]], [0.4], keep_whole_image=True).regions.boxes.tolist() == [[0, 0, 100, 50]]
    assert kept([], [], keep_whole_image=True).regions.boxes.tolist() == [[0, 0, 100, 50]]
    assert kept([], []).regions.boxes.shape == (0, 4)


@pytest.mark.parametrize("place", ["box", "score"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_name(place: str, bad: float) -> None:
    boxes, scores = [[0.0, 0, 10, 10]], [1.0]
    if place == "box":
        boxes[0][2] = bad
    else:
        scores[0] = bad
    with pytest.raises(ShardError, match=r"'a' \(100x50\).*grid.*NaN or infinite"):
        kept(boxes, scores, proposals="grid")


# ---- grid


def grid_of(width: int, height: int, **config: Any) -> np.ndarray:
    settings = RegionsConfig(proposals="grid", **config)
    return regions_of(make_proposer(settings), settings, [Photo("a", width, height)])[0].regions.boxes


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 400), (640, 427), (3, 2)])
def test_cells_tile_the_image(width: int, height: int) -> None:
    boxes = grid_of(width, height, grid=[3, 4])
    assert len(boxes) == 12 and problem(boxes, width, height) == ""
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() == pytest.approx(width * height, rel=1e-5)
    assert (iou(boxes.astype(float), boxes.astype(float)) - np.eye(12)).max() < 1e-5


def test_each_level_doubles_rows_and_columns() -> None:
    boxes = grid_of(64, 32, grid=[1, 2], grid_levels=3)
    assert len(boxes) == 2 + 8 + 32
    assert (
        boxes[0].tolist() == [0, 0, 32, 32]
        and boxes[2].tolist() == [0, 0, 16, 16]
        and boxes[10].tolist() == [0, 0, 8, 8]
    )


# ---- boxes that came with a sample


def test_boxes_of_a_json_member() -> None:
    found = boxes_in({"json": json.dumps({"boxes": [[0, 1.5, 2, 3]], "caption": "x"}).encode()})
    assert found is not None and found.dtype == F32 and found.tolist() == [[0, 1.5, 2, 3]]
    none = boxes_in({"json": b'{"boxes": []}'})
    assert none is not None and none.shape == (0, 4)
    assert boxes_in({"json": b'{"caption": "x"}'}) is None
    assert boxes_in({"json": b'{"boxes": null}'}) is None
    assert boxes_in({"txt": b"x"}) is None


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ('"all"', "'boxes' is a str"),
        ("[1, 2, 3, 4]", r"boxes\[0\] = 1"),
        ("[[1, 2, 3, 4], [1, 2, 3]]", r"boxes\[1\] = \[1, 2, 3\]"),
        ('[["1", 2, 3, 4]]', r"boxes\[0\]"),
        ("[[true, 2, 3, 4]]", r"boxes\[0\]"),
        ("[[NaN, 2, 3, 4]]", r"boxes\[0\] = \[nan"),
        ("[[1, 2, Infinity, 4]]", r"boxes\[0\]"),
        ("[[1, 2, 1" + "0" * 400 + ", 4]]", r"boxes\[0\]"),
    ],
)
def test_boxes_that_are_none_are_named(value: str, named: str) -> None:
    with pytest.raises(DecodeError, match=named):
        boxes_in({"json": f'{{"boxes": {value}}}'.encode()})


def test_given_boxes_are_clipped_and_those_outside_counted() -> None:
    config = RegionsConfig()
    photo = Photo("a", 100, 50, given=np.array([[-5, -5, 20, 20], [200, 0, 220, 20], [10, 10, 10, 20]], F32))
    found = regions_of(AnnotationProposer(), config, [photo])[0]
    assert found.regions.boxes.tolist() == [[0, 0, 20, 20]]
    assert found.dropped == 2


def test_a_photo_without_known_boxes_is_refused_with_the_remedy() -> None:
    with pytest.raises(ShardError, match=r"sample 'a'.*'boxes'.*regions\.proposals=segments"):
        AnnotationProposer().propose([Photo("a", 10, 10)])


# ---- config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("regions.top_k=0", r"regions\.top_k = 0"),
        ("regions.top_k=20000", r"regions\.top_k = 20000"),
        ("regions.nms_iou=1.5", r"regions\.nms_iou = 1\.5"),
        ("regions.min_size=-1", r"regions\.min_size = -1"),
        ("regions.proposals=selective", r"regions\.proposals = 'selective'"),
        ("regions.proposals=hf", r"needs hf\.model"),
        ("regions.segment.side=3", r"did you mean 'regions\.segments"),
        ("regions.segments.side=3", r"regions\.segments\.side = 3"),
        ("regions.segments.scales=[]", r"regions\.segments\.scales = \[\]"),
        ("regions.hf.score=best", r"regions\.hf\.score = 'best'"),
        ("regions={grid: [50, 50], grid_levels: 3}", "52500 cells"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(None, [override])


def test_every_backend_is_a_choice_of_the_config() -> None:
    assert set(RegionsConfig.model_fields["proposals"].annotation.__args__) == set(BACKENDS)
