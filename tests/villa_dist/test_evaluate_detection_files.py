"""COCO's and LVIS' JSON: what is read, and what is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from villa_dist.evaluate.detection_files import read_category_ids, read_detections, read_truth, to_rows
from villa_dist.evaluate.errors import EvaluationError

TRUTH: dict[str, Any] = {
    "images": [{"id": 9}, {"id": 4}],
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 1},
        {"image_id": 9, "category_id": 7, "bbox": [1.5, 2, 3, 4]},
    ],
}
ROW = {"image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}


def test_truth_becomes_columns(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(TRUTH))
    for source in (tmp_path / "t.json", str(tmp_path / "t.json"), TRUTH):
        truth = read_truth(source)
        assert truth.images.tolist() == [4, 9]
        assert (truth.categories.tolist(), truth.names) == ([2, 7], ("cat", "dog"))
        assert truth.area.tolist() == [5.5, 12.0]
        assert truth.crowd.tolist() == [True, False]
        assert truth.negative is truth.frequency is None


def test_lvis_truth(shared_data: Path) -> None:
    truth = read_truth(shared_data / "lvis/lvis_val_100.json")
    assert (len(truth.images), len(truth.image), len(truth.categories)) == (100, 977, 1230)
    assert truth.negative is not None
    assert set(truth.frequency or ()) == {"r", "c", "f"}


def put(path: str, value: Any) -> dict[str, Any]:
    truth = copy.deepcopy(TRUTH)
    *steps, last = path.split("/")
    at: Any = truth
    for step in steps:
        at = at[int(step) if step.isdigit() else step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return truth


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("images", None, "must hold images, annotations and categories"),
        ("images/0/id", None, "image without id"),
        ("images/0/id", 4, "image id 4 occurs 2 times"),
        ("images/0/id", "x", "image id 'x' is not an integer"),
        ("images/0/id", 2**70, "does not fit 64 bits"),
        ("categories/0/id", 2, "category id 2 occurs 2 times"),
        ("annotations/1/image_id", 5, "annotation 1 is of image 5, which is not listed"),
        ("annotations/1/category_id", 5, "annotation 1 is of category 5, which is not listed"),
        ("annotations/1/bbox", None, "annotation without bbox"),
        ("annotations/1/bbox", [1, 2, 3], "row 1 has box"),
        ("annotations/1/bbox", [1, 2, "3", 4], "row 1 has box"),
        ("annotations/1/bbox", [1, 2, -3, 4], "annotation 1 has box"),
        ("annotations/1/bbox", [1, 2, float("nan"), 4], "annotation 1 has box"),
        ("annotations/0/area", float("inf"), "annotation 0 has box"),
        ("annotations/0/area", "big", "it must be a number"),
    ],
)
def test_damaged_truth_is_named(path: str, value: Any, says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        read_truth(put(path, value))


def test_damaged_lvis_truth_is_named() -> None:
    truth = copy.deepcopy(TRUTH)
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [2]}
    assert read_truth(truth).frequency is None
    for category in truth["categories"]:
        category["frequency"] = "r"
    assert (read_truth(truth).not_exhaustive == [[9, 2], [4, 2]]).all()
    truth["images"][1]["neg_category_ids"] = [3]
    with pytest.raises(EvaluationError, match="neg_category_ids of image 4 names category 3"):
        read_truth(truth)
    truth["images"][1]["neg_category_ids"] = []
    truth["categories"][0]["frequency"] = "often"
    with pytest.raises(EvaluationError, match="category 7 has frequency 'often'"):
        read_truth(truth)
    truth["categories"][0]["frequency"] = "c"
    truth["annotations"][0]["ignore"] = 1
    with pytest.raises(EvaluationError, match="ignore"):
        read_truth(truth)


def test_detections_go_there_and_back(tmp_path: Path) -> None:
    found = read_detections([ROW, ROW | {"score": 0.25}])
    assert found.score.tolist() == [1.0, 0.25]
    (tmp_path / "d.json").write_text(json.dumps(to_rows(found)))
    again = read_detections(tmp_path / "d.json")
    for column in ("image", "category", "box", "score"):
        np.testing.assert_array_equal(getattr(again, column), getattr(found, column))
    assert len(read_detections([])) == 0


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"a": 1}, "must be a list of rows, found dict"),
        ([ROW, {}], "detection without image_id"),
        ([ROW, 3], "detection without image_id"),
        ([ROW | {"score": "high"}], "row 0 has score 'high'"),
        ([ROW | {"score": None}], "it must be a number"),
        ([ROW | {"bbox": None}], "row 0 has box None"),
        ([ROW | {"image_id": "000004.jpg"}], "id '000004.jpg' is not an integer"),
        ([ROW | {"image_id": True}], "is not an integer"),
    ],
)
def test_damaged_detections_are_named(rows: Any, says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        read_detections(rows)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    (tmp_path / "cut.json").write_text('[{"id": 1')
    for read in (read_truth, read_detections, read_category_ids):
        with pytest.raises(EvaluationError, match="no such file"):
            read(tmp_path / "none.json")
        with pytest.raises(EvaluationError, match="cannot be read"):
            read(tmp_path)
        for name in ("bad.json", "cut.json"):
            with pytest.raises(EvaluationError, match="not JSON"):
                read(tmp_path / name)
    (tmp_path / "ids.json").write_text('[{"id": 3}, {"id": 1}]')
    assert read_category_ids(tmp_path / "ids.json").tolist() == [1, 3]
    (tmp_path / "ids.json").write_text("{}")
    with pytest.raises(EvaluationError, match="no category list"):
        read_category_ids(tmp_path / "ids.json")
