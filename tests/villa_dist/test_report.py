"""The report: its figures are those of the run, its marks are true, and nothing in the data can act in it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_run import HOSTILE, MEASURED, Page, docmnist_run, foreign_run

from shards.commit import StageFolder
from shards.errors import ShardError
from shards.reader import BaseShard
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.evaluate.items import Items
from villa_dist.report import gallery, plots, tables, text
from villa_dist.report.build import build
from villa_dist.report.summary import summary
from villa_dist.types import RegionAttributePairs

EMPTY = tables.Refusals((), (), {}, (), (), 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    config = docmnist_run(tmp_path_factory.mktemp("report") / "run")
    return config, Path(build(config))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    config = foreign_run(tmp_path_factory.mktemp("foreign"))
    return config, Path(build(config))


# ---- the whole page


def test_the_tables_hold_the_figures_of_results_json(finished: tuple[Config, Path]) -> None:
    config, path = finished
    assert path == Path(config.run) / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.row("One-to-one VLM")[:7] == ["One-to-one VLM", "41.07", "–", "–", "55.50", "–", "–"]
    assert page.row("ViLLA") == ["ViLLA", "61.39", "+20.32", "50.0%", "54.25", "−1.25", "−25.0%", "51.31", "80.04"]
    assert page.row("Ground-truth pairs")[1:4] == ["81.71", "+40.64", "100.0%"]
    assert page.row("321") == ["321", "71.23", "64.56", "67.73", "50.17"]
    assert "On the test split (20 images, 90 regions) ViLLA reaches 61.4% in attribute→region" in page.text
    assert "Nothing was refused." in page.text
    held_up = "device, embedding (71%)"
    assert ["pairs", "test", "3", "20", "5.25", "3.8", held_up, "embed 3.75, map 1.50"] in [r[:8] for r in page.rows]


def test_the_page_asks_for_nothing(finished: tuple[Config, Path], foreign: tuple[Config, Path]) -> None:
    for _, path in (finished, foreign):
        html = path.read_text(encoding="utf-8")
        assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
        page = Page(html)
        links = [v for _, name, v in page.attributes if name in ("src", "href", "srcset", "action", "xlink:href")]
        assert len(links) >= 8
        assert all(v.startswith(("data:", "#")) for v in links)
        assert page.scripts[0] == "application/json" and len(page.scripts) == 2
        policy = next(v for _, name, v in page.attributes if name == "content" and "default-src" in v)
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
        own = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
        assert f"script-src 'sha256-{own}'; base-uri 'none'" in policy


def test_the_same_run_gives_the_same_bytes(finished: tuple[Config, Path]) -> None:
    config, path = finished
    before = path.read_bytes()
    build(config)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".report*"))


def test_hostile_data_stays_data(foreign: tuple[Config, Path]) -> None:
    page = Page(foreign[1].read_text(encoding="utf-8"))
    assert page.tags.count("script") == 2  # data, and the page's own
    assert not [(t, a) for t, a, _ in page.attributes if a.startswith("on")]
    assert HOSTILE in page.text and "<img src=x onerror=alert(3)>" in page.text
    assert "\u202e" not in page.text and "a dog \\u202e" in page.text
    assert page.row("undecodable_image") == ["undecodable_image", "1"]
    assert page.row("no_text") == ["no_text", "2"]
    assert "3 of 6 samples did not get into the base shards" in page.text


def test_a_run_without_truth_shows_scores_and_judges_nothing(foreign: tuple[Config, Path]) -> None:
    page = Page(foreign[1].read_text(encoding="utf-8"))
    assert "No split of this run has known region-attribute pairs, so its models were not measured." in page.text
    assert "No training job of this run has logged a step." in page.text
    assert "There are no metrics: the run has no results.json." in page.text
    assert "3 attributes assigned 1 cat 0.88 dog 0.50 2 cat 0.25" in page.text
    assert "missed" not in page.text and "wrong" not in page.text


def test_a_run_without_anything_still_has_a_report(tmp_path: Path) -> None:
    page = Page(Path(build(load(None, [f"run={tmp_path}"]))).read_text(encoding="utf-8"))
    assert "No stage of this run has committed a shard." in page.text
    assert "There are no pictures" in page.text


def test_damaged_results_are_named(tmp_path: Path) -> None:
    for content in ("{", "[]"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ShardError, match=r"results\.json .*run the evaluate stage again"):
            build(load(None, [f"run={tmp_path}"]))


# ---- the gallery


def test_marks_of_a_hand_made_image() -> None:
    phrases = ["red", "blue", "cat"]
    left, right, far = [0, 0, 10, 10], [10, 0, 20, 10], [40, 40, 60, 60]
    truth = RegionAttributePairs(
        np.array([left, right], np.float32), np.array([0, 0, 1]), np.array([0, 2, 1]), np.ones(3, np.float16)
    )
    # left: red is right, blue is wrong, cat is missed. right: nothing said, blue missed. far: a box of its own
    said = RegionAttributePairs(
        np.array([[1, 0, 10, 10], far], np.float32), np.array([0, 0, 1]), np.array([0, 1, 2]), np.array([0.9, 0.8, 0.7])
    )
    made = gallery.picture("k", "t", np.zeros((64, 64, 3), np.uint8), said, truth, phrases)
    marks = [[(m.verdict, m.phrase) for m in r.marks] for r in made.regions]
    assert marks == [
        [("right", "red"), ("wrong", "blue"), ("missed", "cat")],
        [("missed", "blue")],
        [("wrong", "cat")],
    ]
    assert [(r.number, r.known, r.box) for r in made.regions] == [
        (1, True, (0.0, 0.0, 10.0, 10.0)),
        (2, True, (10.0, 0.0, 10.0, 10.0)),
        (3, False, (40.0, 40.0, 20.0, 20.0)),
    ]
    assert made.counts == {"right": 1, "wrong": 2, "missed": 2, "assigned": 0}


def test_the_page_marks_what_was_spoiled(finished: tuple[Config, Path]) -> None:
    config, path = finished
    pictures = gallery.pictures(config, "test")
    assert len(pictures) == 12
    for made in pictures:
        assert made.counts["wrong"] == made.counts["missed"] == 1
        assert [m.verdict for m in made.regions[0].marks].count("wrong") == 1
    words = Page(path.read_text(encoding="utf-8")).text
    first = pictures[0]
    marks = {v: [m.phrase for m in first.regions[0].marks if m.verdict == v] for v in gallery.VERDICTS}
    right = " ".join(f"✓right: {p} 0.75" for p in marks["right"])
    assert f"1 {right} ✗wrong: {marks['wrong'][0]} 0.75 ○missed: {marks['missed'][0]}" in words
    assert f"{first.key} {first.counts['right']} right, 1 wrong, 1 missed" in words


def test_the_picture_is_the_sample_pixel_by_pixel(finished: tuple[Config, Path]) -> None:
    config, _ = finished
    made = gallery.pictures(config, "test", wanted=1)[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.uri.split(",")[1]))))
    shard, number = made.key.split("-")
    base = BaseShard(StageFolder(f"{config.run}/test", "base"), shard)
    assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(base.sample(int(number))["png"]))))


def test_images_are_spread_evenly_over_shards() -> None:
    assert gallery.chosen_rows([4, 0, 4], 4) == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert gallery.chosen_rows([1, 1], 12) == [(0, 0), (1, 0)]
    assert gallery.chosen_rows([], 12) == []


def test_badges_do_not_cover_each_other() -> None:
    same = [gallery.Region(n, (0.0, 0.0, 50.0, 50.0), True, ()) for n in (1, 2, 3, 4)]
    placed = gallery.place_badges(same, np.zeros((100, 100, 3), np.uint8))
    assert len({r.badge for r in placed}) == 4


# ---- tables, summary, text


def results(**metrics: Any) -> list[tables.SplitResults]:
    return tables.by_split({"splits": {"test": metrics}})


@pytest.mark.parametrize(
    ("one", "villa", "best", "said"),
    [
        (40.0, 50.0, 60.0, "10.0 points above the one-to-one VLM in A→R. It closes part of the gap to training on true "
                           "pairs: 50% in A→R."),
        (40.0, 30.0, 60.0, "10.0 points below the one-to-one VLM in A→R. It falls behind, away from training on true "
                           "pairs, in A→R (−50% of the gap)."),
        (40.0, 70.0, 60.0, "It reaches training on true pairs in A→R (150% of the gap; no interval of its lead over it is "
                           "known)."),
        (40.0, 50.0, 40.2, "In A→R there is no gap to close: training on true pairs brings +0.2 points compared with "
                           "the one-to-one VLM."),
        (40.0, 40.01, None, "ViLLA reaches 40.0% in attribute→region retrieval (A→R): level with the one-to-one VLM "
                            "in A→R."),
        (None, 50.0, None, "On the test split ViLLA reaches 50.0% in attribute→region retrieval (A→R)."),
        (40.0, None, 60.0, "On the test split no figure of ViLLA is known; the one-to-one VLM reaches 40.0% in "
                           "attribute→region retrieval (A→R)."),
        (float("nan"), float("nan"), 60.0, "On the test split no figure of ViLLA is known."),
    ],
)  # fmt: skip
def test_the_summary_says_what_the_figures_say(
    one: float | None, villa: float | None, best: float | None, said: str
) -> None:
    given = {"one_to_one": one, "villa": villa, "ground_truth": best}
    measured = results(**{job: {"a2r": value} for job, value in given.items() if value is not None})
    assert said in " ".join(summary(measured, {}, EMPTY))


@pytest.mark.parametrize(
    ("steps", "share", "said"),
    [
        ({"villa": (12, 1), "ground_truth": (10, 1)}, "120.0%",
         "It goes beyond training on true pairs in A→R (120% of the gap)."),
        ({"villa": (12, 4), "ground_truth": (10, 1)}, "120.0%",
         "It reaches training on true pairs in A→R (120% of the gap; its lead over it may be chance)."),
        ({"villa": (5, 1), "ground_truth": (10, 1)}, "50.0%",
         "It closes part of the gap to training on true pairs: 50% in A→R."),
        ({"villa": (12, 1), "ground_truth": (10, 20)}, "–",
         "Training on true pairs brings +10.0 points in A→R (95%: −27.1 to +47.0) over the one-to-one VLM, which may be "
         "chance, so no share of the gap is told."),
    ],
)  # fmt: skip
def test_a_share_of_the_gap_is_told_where_it_is_no_chance(
    steps: dict[str, tuple[float, float]], share: str, said: str
) -> None:
    """steps: above the one-to-one VLM, mean and spread of the resamples."""
    ranks = np.linspace(-1.95, 1.95, 399)  # of a spread: 95 % of them lie within 1.85
    kept, metrics = {}, {}
    for job, (step, spread) in {"one_to_one": (0.0, 0.0), **steps}.items():
        draws = np.concatenate([[40.0 + step], 40.0 + step + spread * ranks])
        kept[job], metrics[job] = Items("t", {"a2r": draws}), {"a2r": 40.0 + step}
    found = tables.by_split({"splits": {"test": metrics}}, {"test": kept})
    row = found[0].row("villa")
    assert row is not None and text.percent(row.a2r.closed) == share
    told = " ".join(summary(found, {}, EMPTY))
    assert said in told and ("may be chance, so no share" in told) == (share == "–")


def test_test_stands_before_other_splits() -> None:
    found = tables.by_split({"splits": {"validation": MEASURED, "test": MEASURED}})
    assert [r.split for r in found] == ["test", "validation"]


def test_examples_are_shared_fairly_among_reasons() -> None:
    assert tables.quotas({"a": 1000, "b": 1, "c": 2}, 20) == {"a": 17, "b": 1, "c": 2}
    assert tables.quotas({}, 20) == {}


def test_secrets_are_redacted() -> None:
    config = {"api_key": "x1", "token": ["x2"], "deep": [{"db_password": "x3", "SecretId": "x4", "keys": {"a": "x5"}}]}
    shown = json.dumps(text.redacted(config))
    assert not [v for v in ("x1", "x2", "x3", "x4", "x5") if v in shown]
    assert text.redacted({"tokenizer": "bert", "keep": 3, "key": None}) == {"tokenizer": "bert", "keep": 3, "key": None}
    assert text.plain("s3://me:pw@b/x?X-Amz-Signature=abc&y=1") == "s3://(redacted)@b/x?X-Amz-Signature=(redacted)&y=1"


def test_curves_skip_what_is_not_a_number_and_keep_the_last_point() -> None:
    lines = [{"step": s, "loss": float("nan") if s == 3 else 1.0} for s in range(1, 1202)]
    found = plots.points(lines, "loss")
    assert len(found) <= plots.MOST_POINTS + 1 and found[-1][0] == 1201
    assert plots.curves({"villa": [{"step": 1.0}]}) == []
    assert plots.running_mean([1.0, 2.0, 9.0, 1.0], 1) == [1.5, 4.0, 4.0, 5.0]
