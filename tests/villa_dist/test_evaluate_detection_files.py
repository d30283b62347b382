"""COCO's and LVIS' JSON: what is read, and what is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from villa_dist.evaluate.detection_files import read_category_ids, read_detections, read_truth, to_rows
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.phrases import read_phrases
from villa_dist.evaluate.zero_shot import read_templates

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
        ("images", 5, "images is 5; it must be a list"),
        ("images", [[]], r"row 0 of images is \[\]; it must be an object"),
        ("annotations", {}, "annotations is {}; it must be a list"),
        ("annotations/1/bbox", [1, 2, 10**400, 4], "row 1 has box"),
        ("annotations/0/area", 10**400, "it must be a number"),
        ("annotations/0/iscrowd", "0", "annotation 0 has iscrowd '0'; it must be 0 or 1"),
        ("categories/0/name", ["dog"], r"category 7 is called \['dog'\]"),
        ("categories/0/name", "\ud800", "its name must be a text"),
    ],
)
def test_damaged_truth_is_named(path: str, value: Any, says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        read_truth(put(path, value))


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_a_truth_of_null_is_named(name: str) -> None:
    with pytest.raises(EvaluationError, match=f"{name} is None; it must be a list"):
        read_truth(TRUTH | {name: None})


ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**400, -(10**400), 2**63, float("nan"), float("inf"), 1e308]),
        st.text(max_size=3),
        st.sampled_from(["\ud800", "", "x" * 500, "{}{}"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["id", "name", "bbox"]), inner, max_size=2)
    ),
    max_leaves=6,
)
LVIS: dict[str, Any] = copy.deepcopy(TRUTH)
for _image in LVIS["images"]:
    _image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [7]}
for _category in LVIS["categories"]:
    _category["frequency"] = "r"
LINE = {"img_path": "a.jpg", "bbox": [1, 2, 3, 4], "pos_expression": ["a"], "neg_expression": ["b"], "width": 9}
FGOVD: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
    "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1, "neg_category_ids": [2]}],
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [at, *(place for key, part in inside for place in places(part, (*at, key)))]


def with_odd(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return odd
    changed = copy.copy(value)
    changed[place[0]] = with_odd(value[place[0]], place[1:], odd)
    return changed


@pytest.mark.parametrize("read", [read_truth, read_detections, read_category_ids, read_templates, read_phrases])
@settings(max_examples=150)
@given(data=st.data())
def test_odd_values_at_any_place_are_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, read: Any, data: st.DataObject
) -> None:
    kinds: dict[Any, list[Any]] = {
        read_truth: [TRUTH, LVIS],
        read_detections: [[ROW, ROW]],
        read_category_ids: [TRUTH["categories"]],
        read_templates: [["a photo of a {}", "{}"]],
        read_phrases: [LINE, FGOVD],
    }
    right = data.draw(st.sampled_from(kinds[read]))
    given_ = with_odd(right, data.draw(st.sampled_from(places(right))), data.draw(ODD))
    file = tmp_path_factory.getbasetemp() / "odd.json"
    file.write_text(json.dumps(given_))
    for source in (file, given_) if read in (read_truth, read_detections) and not isinstance(given_, str) else (file,):
        try:
            read(source)
        except EvaluationError as error:
            str(error).encode()  # it can be printed


@pytest.mark.parametrize("read", [read_truth, read_detections, read_category_ids, read_templates, read_phrases])
def test_deep_json_is_named(tmp_path: Path, read: Any) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 200_000)
    with pytest.raises(EvaluationError, match=r"deep\.json"):
        read(file)


def test_numbers_too_large_to_write_are_named() -> None:
    with pytest.raises(EvaluationError, match="too large to show"):
        read_detections([ROW | {"score": 10**5000}])


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
