"""Detection as a part of a run: known figures of models of known quality, the library by hand, resuming, mistakes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_run import IDS, IMAGES, QUALITY, SHARDS, Backwards, Cut, Seer, config_of, squares
from report_run import Page

from shards.decode import DecodeError
from shards.errors import StaleStageError, VillaError
from villa_dist.config import Config, RegionsConfig
from villa_dist.config_file import keys, load
from villa_dist.evaluate.ap_bootstrap import ap_difference
from villa_dist.evaluate.classes import COCO_BASE, COCO_NOVEL
from villa_dist.evaluate.coco_engine import coco_average_precision
from villa_dist.evaluate.detection import Detections
from villa_dist.evaluate.detection_files import read_truth
from villa_dist.evaluate.detection_table import lines
from villa_dist.evaluate.known_boxes import NONE
from villa_dist.evaluate.lvis_engine import lvis_average_precision
from villa_dist.evaluate.models_measured import Measured
from villa_dist.evaluate.zero_shot import COCO, LVIS, ImageRegions, Protocol, class_vectors, detect
from villa_dist.pipeline import Pipeline
from villa_dist.regions.grid import GridProposer
from villa_dist.regions.proposals import Photo
from villa_dist.report.build import render
from villa_dist.runner import LocalRunner
from villa_dist.stages.boxes import image_id, own_boxes
from villa_dist.stages.windows import Sample


def evaluated(config: Config, runner: Any = None, *, force: bool = False) -> dict[str, Any]:
    line = Pipeline(config, runner or LocalRunner(), force=force)
    result: dict[str, Any] = line.run(["evaluate"])["detection"]["test"]
    return result


def test_a_perfect_model_reaches_everything_on_true_boxes(folder: Path) -> None:
    found = evaluated(config_of(folder))
    villa, base = found["models"]["villa"]["truth"], found["models"]["one_to_one"]["truth"]
    assert villa["all"]["AP"] == villa["all"]["AP50"] == villa["top1"] == villa["top5"] == 100.0
    assert villa["all"]["interval"] == [100.0, 100.0]
    boxes = [(b, c) for n in range(1, SHARDS * IMAGES + 1) for b, c in zip(*squares(n)[1:], strict=True)]
    right = np.mean([(x * 7 + y * 3 + r) % 10 < 5 for (x, y, r, _), _ in boxes])
    assert base["top1"] == pytest.approx(100 * right, abs=1e-4)  # as often as it sees the right colour
    assert found["true_boxes"] == len(boxes) and found["images"] == SHARDS * IMAGES
    top1 = next(d for d in found["differences"] if d["metric"] == "top1")
    assert top1["difference"] == pytest.approx(100 - base["top1"]) and top1["significant"]
    assert json.loads((folder / "run/results.json").read_text())["detection"]["test"] == found


def test_the_report_shows_the_table(folder: Path) -> None:
    config = config_of(folder, classes={"base": ["red", "blue"], "novel": ["green"]})
    found = evaluated(config)
    page = render(config)
    assert "Zero-shot detection, test split, true boxes" in page and "were not measured" not in page
    assert "Zero-shot detection on true boxes of the test split (30 images" in page
    assert "AP50 novel" in page and "detect, ViLLA" in page
    gain = next(d["difference"] for d in found["differences"] if d["group"] == "all" and d["metric"] == "AP50")
    assert f"+{gain:.1f} (" in page
    assert any(line.startswith("ViLLA ") and "100.0" in line for line in lines(found))
    assert found["chance"] == {"top1": 33.3333, "top5": 100.0}  # of three classes
    assert any(line.split() == ["Chance", *"----", "33.3", "100.0"] for line in lines(found))
    assert Page(page).row("Chance")[-3:] == ["33.3", "100.0", "–"] and "for Chance" not in page


def by_hand(quality: float, mode: str, truth: Any, protocol: Protocol = COCO) -> Detections:
    seer = Seer(quality)
    vectors = class_vectors(truth.names, ["a photo of a {}"], lambda texts: seer.embed_texts(texts).numpy())
    grid = GridProposer(RegionsConfig(proposals="grid", grid=[2, 2], grid_levels=2))
    parts = []
    for n in truth.images.tolist():
        pixels, boxes, _ = squares(n)
        given = np.array(boxes, np.float64).reshape(-1, 4)
        objectness = None
        if mode == "proposals":
            proposed = grid.propose([Photo(str(n), 48, 48)])[0]
            given, objectness = proposed.boxes, proposed.objectness
        at = torch.from_numpy(np.asarray(given, np.float32))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        embedded = seer.embed_regions(image, at, torch.zeros(len(at), dtype=torch.long), torch.tensor([[48, 48]]))
        parts.append(detect(ImageRegions(n, given, embedded.numpy(), objectness), vectors, truth.categories, protocol))
    return Detections.join(parts)


def test_it_equals_the_library_by_hand(folder: Path) -> None:
    groups = {"base": ["red", 12], "novel": ["green"]}
    config = config_of(folder, truth=str(folder / "truth.json"), boxes="both", classes=groups, bootstrap=50)
    found = evaluated(config)
    truth = read_truth(folder / "truth.json")
    assert found["classes"] == {"novel": 1, "base": 2, "all": 3}
    for mode in ("truth", "proposals"):
        hand = {job: by_hand(quality, mode, truth) for job, quality in QUALITY.items()}
        for job, rows in hand.items():
            mine, theirs = found["models"][job][mode], coco_average_precision(truth, rows, per_image=100)
            assert mine["detections"] == len(rows) > 0
            assert mine["all"]["AP"] == round(100 * theirs.metrics["AP"], 4)
            assert mine["all"]["APs"] == round(100 * theirs.metrics["APs"], 4)
            at = truth.categories.tolist().index(IDS["green"])
            assert mine["novel"]["AP50"] == round(100 * theirs.table.precision[at, 0, 0], 4)
        expected = ap_difference(truth, hand["one_to_one"], hand["villa"], per_image=100, repetitions=50)
        told = next(
            d for d in found["differences"] if d["boxes"] == mode and d["group"] == "all" and d["metric"] == "AP50"
        )
        assert told["difference"] == pytest.approx(100 * expected.difference, abs=1e-4)
        assert told["interval"] == pytest.approx([100 * expected.low, 100 * expected.high], abs=1e-4)


def test_lvis_by_hand(folder: Path) -> None:
    """Green is not exhaustive in one image, and absent for certain in another: what is found there counts or does not."""

    def change(truth: dict[str, Any]) -> None:
        for n, image in enumerate(truth["images"]):
            image |= {"neg_category_ids": [3] if n == 1 else [], "not_exhaustive_category_ids": [3] if n == 2 else []}
        for category, frequency in zip(truth["categories"], "rcf", strict=True):
            category["frequency"] = frequency

    place = changed(folder, change)
    found = evaluated(config_of(folder, truth=place, protocol="lvis", boxes="both"))
    truth = read_truth(place)
    assert found["classes"] == {"rare": 1, "common": 1, "frequent": 1, "all": 3}
    for mode in ("truth", "proposals"):
        hand = lvis_average_precision(truth, by_hand(0.5, mode, truth, LVIS)).metrics
        mine = found["models"]["one_to_one"][mode]
        assert mine["all"]["AP"] == round(100 * hand["AP"], 4)
        assert [mine[g]["AP"] for g in ("rare", "common", "frequent")] == [
            round(100 * hand[f"AP{f}"], 4) for f in "rcf"
        ]


@pytest.mark.slow
def test_published_models_are_rows_of_the_same_table(squares_made: Path, tmp_path: Path) -> None:
    import tiny_checkpoints

    folder = Path(shutil.copytree(squares_made, tmp_path / "data"))
    tiny_checkpoints.write("clip", tmp_path / "clip")
    config = config_of(folder, boxes="both")
    baselines = [{"weights": str(tmp_path / "clip"), "regions": r} for r in ("dense", "crops")]
    values = config.model_dump(mode="json")
    config = Config.model_validate({**values, "evaluate": {**values["evaluate"], "baselines": baselines}})
    found = evaluated(config)
    assert list(found["models"]) == ["one_to_one", "villa", "clip-dense", "clip-crops"]
    dense, crops = (found["models"][f"clip-{r}"]["truth"] for r in ("dense", "crops"))
    assert dense != crops
    assert {d["first"] for d in found["differences"]} == {"one_to_one", "clip-dense", "clip-crops"}
    assert evaluated(config) == found
    gone = Config.model_validate(
        {**values, "evaluate": {**values["evaluate"], "baselines": [{"weights": str(tmp_path / "gone")}]}}
    )
    with pytest.raises(VillaError, match="gone"):
        evaluated(gone)


@pytest.mark.parametrize("stage", ["boxes", "detect-villa"])
def test_what_was_cut_off_resumes_and_order_does_not_matter(folder: Path, stage: str) -> None:
    config = config_of(folder, boxes="both")
    with pytest.raises(KeyboardInterrupt):
        Pipeline(config, Cut(stage, 1)).run(["evaluate"])
    first = next((folder / "run/test" / stage).glob("*.done.json"))
    before = first.stat().st_mtime_ns
    found = evaluated(config, Backwards())
    assert first.stat().st_mtime_ns == before and len(list(first.parent.glob("*.done.json"))) == SHARDS
    sidecars = {
        p.relative_to(folder): p.read_bytes()
        for p in (folder / "run/test").glob("[bd]*/*.parquet")
        if p.parent.name != "base"
    }
    for name in ("boxes", "detect-villa", "detect-one_to_one"):
        shutil.rmtree(folder / "run/test" / name)
    assert evaluated(config) == found
    assert all((folder / p).read_bytes() == data for p, data in sidecars.items()) and len(sidecars) == 3 * SHARDS + 3


def test_the_samples_own_boxes_and_a_file_say_the_same(folder: Path) -> None:
    own = evaluated(config_of(folder))
    again = config_of(folder, truth=str(folder / "truth.json"))
    with pytest.raises(StaleStageError, match="truth"):
        evaluated(again)
    with pytest.raises(StaleStageError, match="templates"):
        (folder / "prompts.json").write_text('["the {}"]')
        evaluated(config_of(folder, templates=str(folder / "prompts.json")))
    assert evaluated(again, force=True) == own


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    truth = json.loads((folder / "truth.json").read_text())
    change(truth)
    (folder / "changed.json").write_text(json.dumps(truth))
    return str(folder / "changed.json")


def test_images_of_one_side_only_are_counted_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(truth: dict[str, Any]) -> None:
        truth["images"] = [i for i in truth["images"] if i["id"] > 4] + [{"id": 500}]
        truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] > 4]
        truth["annotations"].append({"image_id": 500, "category_id": 7, "bbox": [1, 1, 5, 5]})

    place = changed(folder, change)
    found = evaluated(config_of(folder, truth=place, boxes="both"))
    assert found["images"] == SHARDS * IMAGES - 4
    assert found["models"]["villa"]["truth"]["all"]["AP"] == 100.0  # the image without a sample is not missed
    assert any("1 of 27 images" in line for line in found["warnings"])
    assert any("4 of 30 samples have no truth" in line for line in found["warnings"])
    assert all(f"detection test: {line}" in caplog.text for line in found["warnings"]) and len(found["warnings"]) == 2


def test_true_boxes_outside_their_image_are_missed_and_told(folder: Path) -> None:
    def change(truth: dict[str, Any]) -> None:
        truth["annotations"].append({"image_id": 5, "category_id": 7, "bbox": [60, 60, 9, 9]})
        truth["annotations"].append({"image_id": 5, "category_id": 7, "bbox": [1, 1, 40, 40], "iscrowd": 1})

    found = evaluated(config_of(folder, truth=changed(folder, change)))
    assert found["models"]["villa"]["truth"]["top1"] == 100.0 > found["models"]["villa"]["truth"]["all"]["AP"]
    assert found["models"]["villa"]["truth"]["boxes"] == found["true_boxes"] - 1
    assert any(line.startswith("1 of ") and "no area inside" in line for line in found["warnings"])


@pytest.mark.parametrize(
    ("detection", "said"),
    [
        ({"truth": "nowhere.json"}, "nowhere.json does not exist"),
        ({"templates": "nowhere.json"}, "nowhere.json: prompt templates cannot be read"),
        ({"truth": "truth.json", "classes": {"base": ["gren"]}}, "no category 'gren'; did you mean 'green'"),
        ({"truth": "truth.json", "classes": {"base": [4]}}, "no category 4; its ids are 3, 7, 12"),
        ({"truth": "truth.json", "classes": {"base": ["green"], "novel": [3]}}, "names a category twice"),
        ({"classes": {"base": ["gren"]}}, "has a box of the 1 classes asked for"),
        ({"truth": "strangers.json"}, "none of 30 samples has a truth: no image id of"),
        ({"truth": "twice.json"}, "two categories called 'red'"),
    ],
)
def test_mistakes_are_named(folder: Path, detection: dict[str, Any], said: str) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    strangers = {**truth, "images": [{"id": 900 + i} for i in range(3)], "annotations": []}
    (folder / "strangers.json").write_text(json.dumps(strangers))
    twice = {**truth, "categories": [*truth["categories"], {"id": 99, "name": "red"}]}
    (folder / "twice.json").write_text(json.dumps(twice))
    given = {k: str(folder / v) if isinstance(v, str) else v for k, v in detection.items()}
    with pytest.raises(VillaError, match=re.escape(said)):
        evaluated(config_of(folder, **given))


def test_a_model_that_is_not_finite_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(Seer):
        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            return super().embed_texts(texts) * float("nan")

    monkeypatch.setattr(Measured, "load", lambda self, config: Blind(1.0))
    with pytest.raises(VillaError, match="class vectors of one_to_one"):
        evaluated(config_of(folder))


def test_regions_that_are_not_finite_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged(Seer):
        def embed_regions(self, *inputs: torch.Tensor) -> torch.Tensor:
            return super().embed_regions(*inputs) * float("inf")

    monkeypatch.setattr(Measured, "load", lambda self, config: Damaged(1.0))
    with pytest.raises(VillaError, match="region embeddings hold NaN or infinity"):
        evaluated(config_of(folder))


def test_boxes_that_do_not_fit_their_names_are_named(folder: Path) -> None:
    sample = Sample(0, "a/3", 9, 9, None, {"json": b'{"boxes": [[0, 0, 4, 4]], "categories": []}'})
    with pytest.raises(DecodeError, match="'categories' is"):
        own_boxes(sample)
    assert image_id(Sample(0, "a/0012", 9, 9, None, {})) == 12
    assert image_id(Sample(0, "photo12", 9, 9, None, {})) == NONE
    assert own_boxes(Sample(0, "a", 9, 9, None, {"json": b"{}"})).image == NONE


def test_the_built_in_split_of_coco() -> None:
    assert (len(set(COCO_BASE)), len(set(COCO_NOVEL)), len({*COCO_BASE, *COCO_NOVEL})) == (48, 17, 65)


def test_configs_that_cannot_be_are_refused() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"detection": {"protocol": "lvis"}}, "needs truth"),
        ({"detection": {"boxes": "both"}}, "are the true boxes"),
        ({"detection": {}}, "data.source=docmnist has none"),
        ({"recall": [], "baselines": [{"weights": "org/clip"}]}, "baselines are measured by"),
        (
            {"detection": {}, "baselines": [{"weights": "a/clip"}, {"weights": "b/clip"}]},
            "two rows are called 'clip-dense'",
        ),
        ({"detection": {"classes": {"base": ["a"], "novel": ["a"]}}}, "both base and novel"),
    ]
    for section, said in bad:
        with pytest.raises(ValueError, match=said):
            Config.model_validate({"evaluate": section})


def test_keys_of_a_section_that_may_be_left_out_are_listed() -> None:
    listed = keys()
    assert listed["evaluate.detection"] is None and listed["evaluate.detection.bootstrap"] == 200
    assert not any(name.startswith("evaluate.baselines.") for name in listed)
    with pytest.raises(VillaError, match=r"did you mean 'evaluate\.detection\.protocol'"):
        load(None, ["evaluate.detection.protocoll=lvis"])
