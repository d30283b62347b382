"""Images of one class each as a part of a run: by hand, from a field and from a table; mistakes."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_run import (
    COLOURS,
    PROMPTS,
    QUALITY,
    TEST,
    cosines,
    evaluated,
    evaluating,
    squares,
    whole_of,
    words_of,
)

from shards.errors import VillaError
from villa_dist.evaluate.class_run import chance, figures
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.whole import Whole, drawn
from villa_dist.report.build import render


def labels_file(folder: Path, numbers: list[int], path: str = "p/{:06d}.png") -> str:
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Path", *COLOURS])
        for n in numbers:
            table.writerow([path.format(n), *(int(c == squares(n)[2][0]) for c in COLOURS)])
    return str(folder / "labels.csv")


def test_classes_by_hand_from_a_field_and_from_a_table(folder: Path) -> None:
    classes = {"prompts": PROMPTS, "field": "first", "precision_at": [2, 5, 100]}
    config = evaluating(folder, classes=classes, recall=[1])
    result = evaluated(config)
    found = result["classes"]["test"]
    numbers = [n for n in TEST if squares(n)[2]]
    label = np.array([COLOURS.index(squares(n)[2][0]) for n in numbers])
    assert found["classes"] == {c: int((label == i).sum()) for i, c in enumerate(COLOURS)}
    assert f"precision beyond {len(numbers)} images is left out" in found["warnings"]
    for job, right in QUALITY.items():
        score = cosines([whole_of(n, right) for n in numbers], [words_of(c) for c in COLOURS])
        best = [[i for i in range(3) if s[i] == s.max()] for s in score]
        top1 = np.array([(y in b) / len(b) for y, b in zip(label.tolist(), best, strict=True)])
        told = found["models"][job]
        assert told["top1"] == pytest.approx(100 * top1.mean(), abs=1e-3)
        assert told["balanced"] == pytest.approx(100 * np.mean([top1[label == c].mean() for c in range(3)]), abs=1e-3)
        for k in (2, 5):
            shares = []
            for c in range(3):
                cut = np.sort(score[:, c])[-k]
                above, tied = score[:, c] > cut, score[:, c] == cut
                mine = label == c
                shares.append(((above & mine).sum() + (k - above.sum()) * (tied & mine).sum() / tied.sum()) / k)
            assert told[f"class_to_image@{k}"] == pytest.approx(100 * np.mean(shares), abs=1e-3)
        assert "class_to_image@100" not in told and 0 <= told["image_to_text@5"] <= 100
    assert "Classes of whole images, test split" in render(config)
    given = {"prompts": PROMPTS, "labels": labels_file(folder, numbers), "key": "Path", "precision_at": [2, 5]}
    shutil.rmtree(folder / "run/test/whole-villa")
    shutil.rmtree(folder / "run/test/whole-one_to_one")
    again = evaluated(evaluating(folder, classes=given))["classes"]["test"]
    assert again["models"] == found["models"] and again["classes"] == found["classes"]


def test_of_many_images_some_are_drawn(folder: Path) -> None:
    classes = {"prompts": PROMPTS, "field": "first", "precision_at": [2, 100]}
    found = evaluated(evaluating(folder, classes=classes, recall_images=7))["classes"]["test"]
    numbers = np.array([n for n in TEST if squares(n)[2]])
    few = numbers[drawn(len(numbers), 7)]
    label = [COLOURS.index(squares(n)[2][0]) for n in few]
    assert found["images"] == 7 and list(found["classes"].values()) == np.bincount(label, minlength=3).tolist()
    assert any(f"of {len(numbers)} images with a class 7 were drawn, the same" in w for w in found["warnings"])
    assert "precision beyond 7 images is left out" in found["warnings"]
    score = cosines([whole_of(n, 1.0) for n in few], [words_of(c) for c in COLOURS])
    top1 = np.mean([(s[y] == s.max()) / (s == s.max()).sum() for s, y in zip(score, label, strict=True)])
    assert found["models"]["villa"]["top1"] == pytest.approx(100 * top1, abs=1e-3)


def test_chance_is_what_random_scores_reach() -> None:
    r, counts = np.random.default_rng(0), np.array([30, 0, 10, 20])
    label = np.repeat(np.arange(4), counts)
    told = []
    for _ in range(400):
        random = r.normal(size=(64, 3))
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        made = figures(Whole(random[:60], random[:60], r.permutation(60)), random[60:], label, [5])
        told.append([made["balanced"], made["class_to_image@5"]])
    by_chance = chance(counts, [5])
    assert by_chance == {"top1": 25.0, "balanced": 25.0, "class_to_image@5": 33.3333, "image_to_text@5": 33.3333}
    assert 100 * np.mean(told, 0) == pytest.approx([25.0, 33.3333], abs=2.0)


def test_images_and_rows_without_the_other_are_counted(folder: Path) -> None:
    numbers = [n for n in TEST if squares(n)[2]]
    place = labels_file(folder, [*numbers[3:], 900])
    prompts = {**PROMPTS, "lilac": "red and blue"}
    (folder / "prompts.yaml").write_text(json.dumps(prompts))
    with (folder / "labels.csv").open() as file:
        rows = [[*line, "lilac" if not n else "0"] for n, line in enumerate(csv.reader(file))]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    classes = {"prompts": str(folder / "prompts.yaml"), "labels": place, "key": "Path", "precision_at": [1]}
    found = evaluated(evaluating(folder, classes=classes))["classes"]["test"]
    said = " ".join(found["warnings"])
    assert f"1 of {len(numbers) - 2} rows of {place} have no sample here" in said
    assert f"{len(TEST) - len(numbers) + 3} of {len(TEST)} images have none of the classes" in said
    assert "1 of 4 classes have no image ('lilac')" in said and found["classes"]["lilac"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"prompts": "bad.yaml"}, "bad.yaml is no JSON or YAML"),
        ({"prompts": "date.yaml"}, "date.yaml is no JSON or YAML"),
        ({"prompts": "half.yaml"}, "prompts of 'red' are ['\\ud800']"),
        (
            {"labels": "short.csv", "field": None, "key": "Path"},
            "short.csv:3: 3 cells where the first line has 4 columns",
        ),
        ({"prompts": "list.yaml"}, "list.yaml: prompts must be a mapping of two or more classes"),
        ({"prompts": {"red": [""], "green": []}}, "prompts of 'red' are"),
        ({"prompts": "bool.yaml"}, "a class is called False; YAML reads some words so"),
        ({"labels": "nowhere.csv", "field": None}, "nowhere.csv: cannot be read"),
        ({"labels": "labels.csv", "field": None}, "no column 'key'; it has Path"),
        ({"labels": "labels.csv", "field": None, "key": "Path", "prompts": {"red": [], "grean": []}}, "mean 'green'"),
        ({"labels": "others.csv", "field": None, "key": "Path"}, "no image of test has a class: none of 1 rows"),
        ({"labels": "empty.csv", "field": None, "key": "Path"}, "no row in it"),
        (
            {"field": "colour"},
            "no image of test has a class: no sample's .json has one of red, green, blue in its field",
        ),
        ({"field": "boxes"}, "'boxes' of its .json is [["),
    ],
)
def test_mistakes_in_classes_are_named(folder: Path, change: dict[str, Any], said: str) -> None:
    labels_file(folder, [n for n in TEST if squares(n)[2]])
    (folder / "bad.yaml").write_text("{")
    (folder / "date.yaml").write_text("{red: [a], green: 2001-99-99}")
    (folder / "half.yaml").write_text(json.dumps({"red": ["\ud800"], "green": []}))
    (folder / "short.csv").write_text("red,green,blue,Path\n1,0,0,x.png\n0,1,0\n")
    (folder / "list.yaml").write_text("[red]")
    (folder / "bool.yaml").write_text("{no: [], yes: []}")
    (folder / "others.csv").write_text("Path,red,green,blue\nx.png,1,0,0\n")
    (folder / "empty.csv").write_text("Path,red,green,blue\n")
    given = {"prompts": PROMPTS, "field": "first"} | change
    given = {k: str(folder / v) if isinstance(v, str) and "." in v else v for k, v in given.items()}
    with pytest.raises(VillaError, match=re.escape(said)):
        evaluated(evaluating(folder, classes=given))


def test_a_slip_in_a_class_is_told(folder: Path) -> None:
    classes = {"prompts": {**PROMPTS, "gren": ["green"]}, "field": "first"}
    del classes["prompts"]["green"]  # type: ignore[attr-defined]
    found = evaluated(evaluating(folder, classes=classes))["classes"]["test"]
    assert "no image's 'first' is 'gren', and some have 'green': is that the class?" in found["warnings"]


def test_one_label_of_two_samples_is_named(folder: Path) -> None:
    with pytest.raises(EvaluationError, match=re.escape("could be 'a/000001.png' and 'b/000001.png'")):
        ImageNames(["a/000001.png", "b/000001.png"]).find("000001")
    names = ImageNames(["files/p10/s50/02aa 1.jpg", "b/2.v1.png", "deep"])
    assert names.find("p10/s50/02aa_1-3ad8c2d1") is None and names.find("x/p10/s50/deep") == 2
    assert [names.find(k) for k in ("b/2_v1-d4cd4b6d", "c/2", "s50/deep")][1:] == [None, 2]
