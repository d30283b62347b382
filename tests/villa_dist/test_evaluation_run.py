"""Recall, classes and hard negatives as parts of a run: equal to plain loops over models of known quality; mistakes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_run import (
    IMAGES,
    PROMPTS,
    QUALITY,
    SHARDS,
    TEST,
    Backwards,
    Cut,
    Seer,
    annotations,
    config_of,
    cosines,
    evaluated,
    evaluating,
    squares,
    whole_of,
    words_of,
)
from report_run import Page

from shards.errors import VillaError
from villa_dist.config import Config
from villa_dist.evaluate.figures import Mean, lines, tables, together
from villa_dist.evaluate.models_measured import encode_whole
from villa_dist.evaluate.whole import drawn, read_whole
from villa_dist.report.build import render


def text_of(number: int) -> str:
    return " and ".join(f"a {c} square" for c in squares(number)[2]) or "an empty picture"


def chance(score: np.ndarray, right: np.ndarray, k: int) -> float:
    """That one of the right is among the k best, equal scores in any order: one less all ways to miss."""
    order = np.sort(score)[::-1]
    cut = order[min(k, len(order)) - 1]
    if (right & (score > cut)).any():
        return 1.0
    tied, places = int((score == cut).sum()), min(k, len(order)) - int((score > cut).sum())
    wrong = tied - int((right & (score == cut)).sum())
    return 1.0 - math.comb(wrong, places) / math.comb(tied, places)


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
    for k in (1, 5, 10):
        i2t = np.mean([chance(np.zeros(len(texts)), r, k) for r in own])
        t2i = np.mean([chance(np.zeros(len(TEST)), r, k) for r in own.T])
        assert found["chance"][f"i2t@{k}"] == pytest.approx(100 * i2t, abs=1e-3)
        assert found["chance"][f"t2i@{k}"] == pytest.approx(100 * t2i, abs=1e-3)
    row = Page(page).row("Chance")
    assert row[1] == f"{found['chance']['i2t@1']:.1f}" and row[-1] == "–"
    assert f"{found['chance']['i2t@1']:.1f}% by chance" in page
    assert lines(tables(result)[0])[4].split()[:2] == ["Chance", f"{found['chance']['i2t@1']:.2f}"]
    main = next(d for d in found["differences"] if d["metric"] == "i2t@1")
    gap = found["models"]["villa"]["i2t@1"] - found["models"]["one_to_one"]["i2t@1"]
    assert main["difference"] == pytest.approx(gap, abs=1e-3) and main["interval"][0] <= gap <= main["interval"][1]
    assert any(line.startswith("ViLLA - One-to-one VLM, i2t@1") for line in lines(tables(result)[0]))


def test_of_many_images_some_are_drawn_alike_for_all_models(folder: Path) -> None:
    config = evaluating(folder, recall=[1], recall_images=5)
    found = evaluated(config)["recall"]["test"]
    assert found["images"] == 5 and found["texts"] <= 5
    assert "5 were drawn, the same for all models" in found["warnings"][0] and found["warnings"][0][3:] in render(
        config
    )
    every = read_whole(config, "test", "villa", np.arange(len(TEST)))
    chosen = drawn(len(TEST), 5)
    assert len(set(chosen.tolist())) == 5 and drawn(4, 5).tolist() == [0, 1, 2, 3]
    some = read_whole(config, "test", "villa", chosen)
    assert len(some.text) == len(set(some.text_of.tolist())) == found["texts"]
    for n, at in enumerate(chosen):
        assert np.array_equal(some.image[n], every.image[at])
        assert np.array_equal(some.text[some.text_of[n]], every.text[every.text_of[at]])


def test_shards_without_a_drawn_image_are_not_read(folder: Path) -> None:
    config = evaluating(folder, recall=[1])
    evaluated(config)
    last = sorted((folder / "run/test/whole-villa").glob("*.parquet"))[-2]  # the last is the manifest
    last.write_bytes(b"damaged")
    few = np.array([0, 3, IMAGES - 1])
    assert read_whole(config, "test", "villa", few).image.shape == (3, 3)
    with pytest.raises(VillaError, match=last.stem):
        read_whole(config, "test", "villa", np.array([0, len(TEST) - 1]))


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


# ---- published models


@pytest.mark.slow
def test_published_models_are_rows_of_every_table(squares_made: Path, tmp_path: Path) -> None:
    import tiny_checkpoints

    folder = Path(shutil.copytree(squares_made, tmp_path / "data"))
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
        ({"splits": ["test", "validation", "test"]}, "test is given twice"),
        ({"baselines": [{"weights": "w", "name": "chance"}]}, "two rows are called 'chance'"),
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
