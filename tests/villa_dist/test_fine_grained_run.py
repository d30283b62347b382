"""The right phrase among hard negatives as a part of a run: by hand, from files of two kinds; mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_run import (
    QUALITY,
    TEST,
    annotations,
    evaluated,
    evaluating,
    question,
    questions,
    squares,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.errors import StaleStageError, VillaError
from shards.sources.names import safe_key
from shards.store import Store
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.phrases import AskedBoxes, put_phrases, read_phrases
from villa_dist.report.build import render


def coco_like(folder: Path, rows: list[dict[str, Any]]) -> str:
    names = sorted({p for r in rows for p in (*r["pos_expression"], *r["neg_expression"])})
    number = {name: n for n, name in enumerate(names, 1)}
    data = {
        "images": [{"id": n, "file_name": f"{n:06d}.png", "width": 48, "height": 48} for n in TEST],
        "categories": [{"id": n, "name": name} for name, n in number.items()],
        "annotations": [
            {
                "image_id": r["image_id"],
                "bbox": r["bbox"],
                "category_id": number[r["pos_expression"][0]],
                "neg_category_ids": [number[n] for n in r["neg_expression"]],
            }
            for r in rows
        ],
    }
    (folder / "own.json").write_text(json.dumps(data))
    return str(folder / "own.json")


def seen(job: str, row: dict[str, Any]) -> bool:
    """Whether a model sees a box' colour as it is; else another's, and both others are equally near."""
    x, y, w, _ = row["bbox"]
    return (x * 7 + y * 3 + x + w) % 10 < 10 * QUALITY[job]


def test_hard_negatives_by_hand(folder: Path) -> None:
    rows = questions()
    config = evaluating(
        folder, fine_grained={"annotations": {"hard": annotations(folder), "own": coco_like(folder, rows)}}
    )
    result = evaluated(config)
    found = result["fine_grained"]["test"]
    assert found["warnings"] == [] and list(found["subsets"]) == ["hard", "own"]
    hard = found["subsets"]["hard"]
    assert (hard["boxes"], hard["negatives"]) == (len(rows), [2, 2]) and hard == found["subsets"]["own"]
    for job in QUALITY:
        rank = np.mean([1.0 if seen(job, r) else 2.5 for r in rows])  # one above, one tied
        assert hard["models"][job]["mean_rank"] == pytest.approx(rank, abs=1e-3)
        assert hard["models"][job]["mean_rank_ties_lost"] == pytest.approx(2 * rank - 1 - (rank - 1) * 2 / 3, abs=1e-3)
        assert hard["models"][job]["top1"] == pytest.approx(100 * np.mean([seen(job, r) for r in rows]), abs=1e-3)
    gap = next(d for d in hard["differences"] if d["metric"] == "top1")
    assert gap["significant"] and gap["difference"] == pytest.approx(100 - hard["models"]["one_to_one"]["top1"])
    page = render(config)
    assert "The right phrase among 2 hard negatives, hard, test split" in page and "phrases, ViLLA" in page


def test_the_first_negatives_alone_and_another_file(folder: Path) -> None:
    path = annotations(folder)
    all_of_them = evaluated(evaluating(folder, fine_grained={"annotations": path}))["fine_grained"]["test"]
    config = evaluating(folder, fine_grained={"annotations": path, "negatives": 1})
    with pytest.raises(StaleStageError, match="annotations"):
        evaluated(config)
    one = evaluated(config, force=True)["fine_grained"]["test"]
    assert one["subsets"]["hard"]["negatives"] == [1, 1]
    assert (
        all_of_them["subsets"]["hard"]["models"]["one_to_one"]["mean_rank"]
        > (one["subsets"]["hard"]["models"]["one_to_one"]["mean_rank"])
    )


def test_boxes_of_other_images_are_counted_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{k: v for k, v in r.items() if k not in ("image_id", "width")} for r in questions()]  # found by their names
    absent = [question(n, b, c) for n in (900, 901) for b, c in zip(*squares(n)[1:], strict=True)]
    path = annotations(folder, [*rows, *({k: v for k, v in r.items() if k != "image_id"} for r in absent)])
    found = evaluated(evaluating(folder, fine_grained={"annotations": path}))["fine_grained"]["test"]
    assert found["subsets"]["hard"]["boxes"] == len(rows)
    said = (
        f"{len(absent)} of {len(rows) + len(absent)} boxes are of images without a sample here (such as val/000900.png)"
    )
    assert found["warnings"][0].startswith(said) and said in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "nowhere.jsonl: cannot be read"),
        ({"bbox": [1, 2, -3, 4]}, "must be x, y, width, height with an area"),
        ({"bbox": [60, 1, 5, 5]}, "lies outside its image of 48x48"),
        ({"bbox": [60, 1, 5, 5], "width": None}, "lies outside the sample '000001'"),
        ({"width": 640, "height": 480}, "the sample '000001' of"),
        ({"neg_expression": []}, "1 positive and 1 negative phrases or more"),
        ({"neg_expression": ["a red square", "a red square"]}, "is empty or occurs twice"),
        ({"img_path": 7}, "a row needs an image's path"),
        ({"pos_expression": 7}, "1 positive and"),
        ({"bbox": None}, "no FG-OVD row (TypeError"),
        ({"image_id": 999, "img_path": "999.png"}, "none of 1 boxes is of an image of"),
    ],
)
def test_mistakes_in_annotations_are_named(folder: Path, change: dict[str, Any] | None, said: str) -> None:
    row = question(1, [1, 1, 9, 9], "red")
    path = str(folder / "nowhere.jsonl") if change is None else annotations(folder, [row | change])
    with pytest.raises(VillaError, match=re.escape(said)) as error:
        evaluated(evaluating(folder, fine_grained={"annotations": path}))
    assert path in str(error.value) or "hard.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "no FG-OVD file"),
        ('{"images": [], "categories": [], "annotations": {}}', "no FG-OVD file"),
        ('{"images": [], "categories": [], "annotations": [{"image_id": 5}]}', "annotation 0: no FG-OVD annotation"),
        ('{"images": [], "categories": [], "annotations": []}', "no box with phrases"),
        ("", "no box with phrases"),
        ('{"bbox": [1]\n', "hard.json:1: not JSON"),
        ("{}\n[]\n", "hard.json:1: no FG-OVD row"),
    ],
)
def test_files_of_another_shape_are_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "hard.json").write_text(content)
    with pytest.raises(EvaluationError, match=re.escape(said)):
        read_phrases(tmp_path / "hard.json")


def test_boxes_of_fg_ovd_fit_the_photos(shared_data: Path) -> None:
    names = ImageNames(sorted(p.name for p in (shared_data / "natural/images").iterdir()))
    for path in (shared_data / "attributes").glob("fgovd_*.jsonl"):
        for row in read_phrases(path):
            at = names.find(row.image.rpartition(".")[0])
            assert at is not None
            with Image.open(shared_data / "natural/images" / names.paths[at]) as image:
                assert image.size == (row.width, row.height)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("img_path", "bbox", "pos_expression", "neg_expression", "width", "height", "image_id")


@given(change=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=2))
def test_any_row_is_read_whole_or_refused(change: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is read goes to the workers and comes back as it is."""
    place = tmp_path_factory.mktemp("rows")
    path = place / "rows.jsonl"
    path.write_text(json.dumps(question(1, [1, 1, 9, 9], "red") | change) + "\n")
    try:
        rows = read_phrases(path, subset="hard")
    except EvaluationError as error:
        assert "rows.jsonl" in str(error)
        return
    store = Store(str(place))
    assert AskedBoxes(store, put_phrases(store, rows)).rows == list(rows)


PARTS = st.lists(st.text(st.characters(blacklist_characters="/", blacklist_categories=["Cs"]), min_size=1), min_size=1)


@given(parts=PARTS.filter(lambda p: p[0].strip("/") and p[-1].strip("/")), above=PARTS, cut=st.integers(0, 3))
def test_a_path_is_found_by_the_key_that_packing_makes_of_it(parts: list[str], above: list[str], cut: int) -> None:
    names = ImageNames(["/".join(parts) + ".jpg", "never/asked.png"])
    key = [safe_key(part) for part in parts]
    assert names.find("/".join(key[min(cut, len(key) - 1) :])) == 0
    assert names.find("/".join([*(safe_key(a) for a in above), *key])) == 0
