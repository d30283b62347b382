"""Recall, classes and hard negatives as parts of a run: equal to plain loops over models of known quality; mistakes."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_run import COLOURS, IMAGES, SHARDS, Backwards, Cut, Seer, config_of, evaluating, prepared, squares
from PIL import Image

from shards.errors import StaleStageError, VillaError
from villa_dist.config import Config
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.figures import Mean, lines, tables, together
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.models_measured import Measured, encode_whole
from villa_dist.evaluate.phrases import read_phrases
from villa_dist.pipeline import Pipeline
from villa_dist.report.build import render
from villa_dist.runner import LocalRunner

QUALITY = {"one_to_one": 0.5, "villa": 1.0}
TEST = range(1, SHARDS * IMAGES + 1)
PROMPTS = {c: [f"a {c} square", c] for c in COLOURS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    prepared(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Measured, "load", lambda self, config: Seer(QUALITY[self.name]))
    return Path(shutil.copytree(made, tmp_path / "data"))


def evaluated(config: Config, runner: Any = None, *, force: bool = False) -> dict[str, Any]:
    result: dict[str, Any] = Pipeline(config, runner or LocalRunner(), force=force).run(["evaluate"])
    return result


def text_of(number: int) -> str:
    return " and ".join(f"a {c} square" for c in squares(number)[2]) or "an empty picture"


def whole_of(number: int, right: float) -> np.ndarray:
    pixels = torch.from_numpy(squares(number)[0]).permute(2, 0, 1)[None]
    return Seer(right).embed_whole(pixels, torch.tensor([[48, 48]]))[0].double().numpy()


def words_of(text: str) -> np.ndarray:
    found = np.array([float(c in text) for c in COLOURS])
    return found / max(float(np.linalg.norm(found)), 1e-12)


def chance(score: np.ndarray, right: np.ndarray, k: int) -> float:
    """That one of the right is among the k best, equal scores in any order: one less all ways to miss."""
    order = np.sort(score)[::-1]
    cut = order[min(k, len(order)) - 1]
    if (right & (score > cut)).any():
        return 1.0
    tied, places = int((score == cut).sum()), min(k, len(order)) - int((score > cut).sum())
    wrong = tied - int((right & (score == cut)).sum())
    return 1.0 - math.comb(wrong, places) / math.comb(tied, places)


def cosines(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    return np.round(np.array([[x @ y for y in b] for x in a]), 6)


# ---- recall


def test_recall_equals_a_plain_loop(folder: Path) -> None:
    config = evaluating(folder, recall=[5, 1, 10])
    result = evaluated(config)
    found = result["recall"]["test"]
    texts = sorted({text_of(n) for n in TEST})
    own = np.array([[text_of(n) == t for t in texts] for n in TEST])
    assert (found["images"], found["texts"]) == (len(TEST), len(texts)) and len(texts) < len(TEST)
    for job, right in QUALITY.items():
        score = cosines([whole_of(n, right) for n in TEST], [words_of(t) for t in texts])
        for k in (1, 5, 10):
            i2t = np.mean([chance(s, r, k) for s, r in zip(score, own, strict=True)])
            t2i = np.mean([chance(s, r, k) for s, r in zip(score.T, own.T, strict=True)])
            assert found["models"][job][f"i2t@{k}"] == pytest.approx(100 * i2t, abs=1e-3)
            assert found["models"][job][f"t2i@{k}"] == pytest.approx(100 * t2i, abs=1e-3)
    assert json.loads((folder / "run/results.json").read_text())["recall"]["test"] == found
    assert result["metrics"] == {}  # of known pairs there are none
    page = render(config)
    assert "Recall of whole images and whole texts, test split" in page and "image→text R@10" in page
    assert "were not measured" not in page and "whole, ViLLA" in page
    main = next(d for d in found["differences"] if d["metric"] == "i2t@1")
    gap = found["models"]["villa"]["i2t@1"] - found["models"]["one_to_one"]["i2t@1"]
    assert main["difference"] == pytest.approx(gap, abs=1e-3) and main["interval"][0] <= gap <= main["interval"][1]
    assert any(line.startswith("ViLLA - One-to-one VLM, i2t@1") for line in lines(tables(result)[0]))


def test_nothing_is_asked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert evaluated(evaluating(folder))["metrics"] == {} and "the metrics are empty" in caplog.text


def test_a_text_is_the_mean_of_its_distinct_sentences() -> None:
    texts = ["red. red. green", "blue", "red"]
    found = encode_whole(Seer(1.0), texts)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)
    assert encode_whole(Seer(1.0), []).shape == (0, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["whole-villa", "phrases-villa"])
def test_what_was_cut_off_resumes_and_order_does_not_matter(folder: Path, stage: str) -> None:
    config = evaluating(folder, recall=[1], fine_grained={"annotations": annotations(folder)})
    with pytest.raises(KeyboardInterrupt):
        evaluated(config, Cut(stage, 1))
    first = next((folder / "run/test" / stage).glob("*.done.json"))
    before = first.stat().st_mtime_ns
    found = evaluated(config, Backwards())
    assert first.stat().st_mtime_ns == before and len(list(first.parent.glob("*.done.json"))) == SHARDS
    names = [f"{part}-{job}" for part in ("whole", "phrases") for job in QUALITY]
    sidecars = {p: p.read_bytes() for n in names for p in (folder / "run/test" / n).glob("*.parquet")}
    for name in names:
        shutil.rmtree(folder / "run/test" / name)
    assert evaluated(config)["recall"] == found["recall"]
    assert all(p.read_bytes() == data for p, data in sidecars.items()) and len(sidecars) == 4 * (SHARDS + 1)


# ---- hard negatives


def question(number: int, box: list[int], colour: str) -> dict[str, Any]:
    x, y, right, low = box
    wrong = [f"a {c} square" for c in COLOURS if c != colour]
    row = {"img_path": f"val/{number:06d}.png", "bbox": [x, y, right - x, low - y], "image_id": number}
    return {**row, "pos_expression": [f"a {colour} square"], "neg_expression": wrong, "width": 48, "height": 48}


def questions(numbers: range = TEST) -> list[dict[str, Any]]:
    return [question(n, b, c) for n in numbers for b, c in zip(*squares(n)[1:], strict=True)]


def annotations(folder: Path, rows: list[dict[str, Any]] | None = None, name: str = "hard.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in (questions() if rows is None else rows)))
    return str(folder / name)


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


# ---- classes


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
    assert "no image has the class 'lilac'" in said and found["classes"]["lilac"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
        ({"prompts": "bad.yaml"}, "bad.yaml is no JSON or YAML"),
        ({"prompts": "list.yaml"}, "list.yaml: prompts must be a mapping of two or more classes"),
        ({"prompts": {"red": [""], "green": []}}, "prompts of 'red' are"),
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
    (folder / "list.yaml").write_text("[red]")
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


# ---- published models


@pytest.mark.slow
def test_published_models_are_rows_of_every_table(made: Path, tmp_path: Path) -> None:
    import tiny_checkpoints

    folder = Path(shutil.copytree(made, tmp_path / "data"))
    tiny_checkpoints.write("clip", tmp_path / "clip")
    baselines = [{"weights": str(tmp_path / "clip"), "regions": r} for r in ("dense", "crops")]
    parts = {
        "recall": [1],
        "classes": {"prompts": PROMPTS, "field": "first", "precision_at": [2]},
        "fine_grained": {"annotations": annotations(folder)},
    }
    config = evaluating(folder, baselines=baselines, **parts)
    found = evaluated(config)
    shown = tables(found)
    assert [t.part for t in shown] == ["recall", "classes", "fine_grained"]
    for table in shown:
        assert list(table.result["models"]) == ["one_to_one", "villa", "clip-dense", "clip-crops"]
        assert {d["first"] for d in table.result["differences"]} == {"one_to_one", "clip-dense", "clip-crops"}
    recall, _, phrases = (t.result["models"] for t in shown)
    assert recall["clip-dense"] == recall["clip-crops"] and phrases["clip-dense"] != phrases["clip-crops"]
    again = evaluated(config)
    assert all(again[t.part] == found[t.part] for t in shown)
    with pytest.raises(VillaError, match="gone"):
        evaluated(evaluating(folder, baselines=[{"weights": str(tmp_path / "gone")}], **parts))
    assert not (folder / "run/test/whole-gone-dense").exists()


# ---- what they share


def test_figures_are_drawn_alike_for_all_models() -> None:
    r = np.random.default_rng(0)
    hits = (r.random(50) < 0.5).astype(float)
    one = {"a": Mean(np.stack([hits, np.ones(50)], 1)), "plain": 0.25}
    better = {"a": Mean(np.stack([np.minimum(hits + 0.1, 1.1), np.ones(50)], 1)), "plain": float("nan")}
    found = together({"villa": better, "other": one}, 100)
    assert found["models"]["other"]["a"] == pytest.approx(100 * hits.mean(), abs=1e-3)
    assert (found["models"]["other"]["plain"], found["models"]["villa"]["plain"]) == (25.0, None)
    (gap,) = found["differences"]  # ten points on every image, so on every resample
    assert gap["interval"] == pytest.approx([10.0, 10.0]) and gap["significant"]
    assert "intervals" not in together({"villa": better, "other": one}, 0)["models"]["villa"]


def test_configs_that_cannot_be_are_refused() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"classes": {"prompts": PROMPTS}}, "give one of the two"),
        ({"classes": {"prompts": PROMPTS, "labels": "a", "field": "b"}}, "give one of the two"),
        ({"fine_grained": {"annotations": {}}}, "must be a path, or several by name"),
        ({"fine_grained": {"annotations": 5}}, "must be a path, or several by name"),
        ({"classes": {"prompts": {"red": "red"}, "field": "a"}}, "two or more classes with their prompts"),
        ({"classes": {"prompts": {"red": [], "green": [5]}, "field": "a"}}, "two or more classes with their prompts"),
        ({"fine_grained": {"annotations": "a.json"}}, "data.source=docmnist has none"),
        ({"recall": [0]}, "greater than or equal to 1"),
    ]
    for section, said in bad:
        with pytest.raises(ValueError, match=said):
            Config.model_validate({"evaluate": section})


def test_known_pairs_and_recall_stand_beside_one_another(folder: Path) -> None:
    """Detection too: each part has its own place in the results."""
    detection = config_of(folder).model_dump(mode="json")["evaluate"]["detection"]
    found = evaluated(
        evaluating(folder, recall=[1], detection=detection, classes={"prompts": PROMPTS, "field": "first"})
    )
    assert {"detection", "recall", "classes"} <= set(found) and "fine_grained" not in found
