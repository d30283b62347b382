"""A figure is below a baseline only beyond its interval, and then it is named with both values; runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import HOSTILE, Page, put

from shards.errors import VillaError
from villa_dist.config import Config
from villa_dist.report import baseline, compare
from villa_dist.report.baseline import BelowBaselineError, Measured, Metric

HEAD = '{"kind": "villa baseline", "format": 1, "code": {}'
DRAWS = np.random.default_rng(0).normal(70, 2, 401)


def measured(place: str = "there", **metrics: Metric) -> Measured:
    return Measured(place, {f"test/villa/{n}": m for n, m in metrics.items()}, {})


def metric(value: float, half: float | None = 1.0, shift: float | None = None, task: str = "t") -> Metric:
    """shift: of the draws, where there are any."""
    interval = None if half is None else (value - half, value + half)
    return Metric(value, interval, task, None if shift is None else DRAWS + shift)


@pytest.mark.parametrize(
    ("then", "now", "worse"),
    [
        (metric(70), metric(69), False),  # within
        (metric(70), metric(68.4), True),  # beyond both intervals together, sqrt(2) points
        (metric(70), metric(68.7), False),
        (metric(70), metric(71), False),
        (metric(70, None), metric(69.9, None), True),  # nothing is known of chance
        (metric(70, None), metric(70, None), False),
        (metric(70, 4, 0.0), metric(69.5, 4, -0.5), True),  # paired: a small step back on every resample
        (metric(70, 4, 0.0), metric(69.5, 4, -0.5, task="other"), False),  # of other images: not paired
        (metric(70, 4, 0.0), metric(70, 4, 0.0), False),
    ],
)
def test_a_figure_is_below_only_beyond_its_interval(then: Metric, now: Metric, worse: bool) -> None:
    if not worse:
        baseline.check(measured(a2r=then), measured(a2r=now))
        return
    with pytest.raises(BelowBaselineError) as raised:
        baseline.check(measured(a2r=then, r2a=metric(50)), measured(a2r=now, r2a=metric(50)))
    said = str(raised.value)
    assert raised.value.exit_code == 5 and said.startswith("1 of 2 figures are below the baseline there:")
    assert f"test/villa/a2r: {now.value:.2f} now, {then.value:.2f} in the baseline" in said and "r2a" not in said
    assert ("interval of the difference −" in said) == (then.interval is not None)


def test_a_figure_that_is_gone_is_named_and_a_new_one_is_not() -> None:
    with pytest.raises(BelowBaselineError, match=r"test/villa/r2a: 50\.00 in the baseline, not measured now"):
        baseline.check(measured(a2r=metric(70), r2a=metric(50)), measured(a2r=metric(70), f1=metric(1)))
    with pytest.raises(VillaError, match="holds no figure"):
        baseline.check(measured(), measured(a2r=metric(70)))


def test_lower_ranks_are_better() -> None:
    then, now = measured(mean_rank=metric(2.0, 0.1)), measured(mean_rank=metric(3.0, 0.1))
    baseline.check(now, then)
    with pytest.raises(BelowBaselineError):
        baseline.check(then, now)


def test_a_baseline_is_read_as_written(tmp_path: Path) -> None:
    nothing = metric(3.0, 1, 0.0)
    assert nothing.draws is not None
    nothing.draws[5] = np.nan
    then = measured(a2r=metric(70, 2, 1.0), r2a=metric(50, None), f1=nothing)
    path = tmp_path / "baseline.json"
    path.write_bytes(baseline.to_bytes(then))
    found = baseline.read(str(path))
    assert found.place == str(path) and {n: m.value for n, m in found.metrics.items()} == {
        n: m.value for n, m in then.metrics.items()
    }
    assert found.metrics["test/villa/r2a"].interval is None and found.metrics["test/villa/r2a"].draws is None
    np.testing.assert_allclose(found.metrics["test/villa/a2r"].draws, DRAWS + 1, atol=1e-4)  # type: ignore[arg-type]
    assert np.isnan(found.metrics["test/villa/f1"].draws[5])  # type: ignore[index]
    assert all(d.paired or d.first.draws is None for d in baseline.differences(found, then))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no baseline"),
        (HEAD + ', "metrics": {"a": {"value": NaN, "interval": null}}}', "a value is nan, which is no finite number"),
        (HEAD + ', "metrics": {"a": {"value": "70", "interval": null}}}', "a value is '70'"),
        (HEAD + ', "metrics": {"a": {"value": -Infinity, "interval": [1, 2]}}}', "a value is -inf"),
        ("[]", "is no baseline"),
        ('{"kind": "villa baseline"}', "it has no 'format'"),
        ('{"kind": "other", "format": 1}', "its kind and format are 'other', 1"),
        (
            '{"kind": "villa baseline", "format": 1, "code": {}, "metrics": {"a": {"value": "x", "interval": null}}}',
            "no base",
        ),
        (
            '{"kind": "villa baseline", "format": 1, "code": {}, "metrics": {"a": {"value": 1, "interval": [1]}}}',
            r"\[1\]",
        ),
    ],
)
def test_what_is_no_baseline_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(VillaError, match=said) as raised:
        baseline.read(str(path))
    assert str(path) in str(raised.value) and "--write-baseline" in str(raised.value)
    with pytest.raises(VillaError, match=r"nowhere\.json is neither a file nor the folder of a run"):
        baseline.read(str(tmp_path / "nowhere.json"))


class Nothing:
    """A run's storage without what evaluate keeps."""

    def find(self, name: str) -> None:
        return None

    def path(self) -> str:
        return "run"


def test_figures_of_all_parts_are_found() -> None:
    group = {"AP50": 30.0, "AP": 20.0, "interval": [28.0, 32.0]}
    results: dict[str, Any] = {
        "splits": {"test": {"villa": {"a2r": 61.0, "a2r_interval": [60.0, 62.0], "r2a": 54.0, "regions": 90}}},
        "detection": {"test": {"protocol": "coco", "images": 3, "models": {"villa": {"truth": {"all": group}}}}},
        "recall": {"test": {"models": {"villa": {"i2t@1": 5.0, "i2t@5": 6.0, "intervals": {"i2t@1": [4.0, 6.0]}}}}},
        "images": {"test": 3},
    }

    found = baseline.of_results(Nothing(), results).metrics  # type: ignore[arg-type]
    assert {n: (m.value, m.interval) for n, m in found.items()} == {
        "test/villa/a2r": (61.0, (60.0, 62.0)),
        "test/villa/r2a": (54.0, None),
        "test/detection/villa/truth/all/AP50": (30.0, (28.0, 32.0)),
        "test/recall/villa/i2t@1": (5.0, (4.0, 6.0)),
    }


def of_resamples(resamples: int) -> Measured:
    """A run's figures where intervals were asked for, and where not."""

    def told(value: dict[str, float], **intervals: list[float]) -> dict[str, Any]:
        return value | ({"intervals": intervals} if resamples else {})

    group = {"AP50": 30.0, "AP": 20.0} | ({"interval": [28.0, 32.0]} if resamples else {})
    true_boxes = {"all": group, "top1": 50.0, "boxes": 9} | ({"top1_interval": [40.0, 60.0]} if resamples else {})
    by_chance = {"chance": {"i2t@1": 1.0, "top1": 1.0}}
    whole = {"resamples": resamples, "images": 3, **by_chance}
    results: dict[str, Any] = {
        "detection": {"test": {"protocol": "coco", **whole, "models": {"villa": {"truth": true_boxes}}}},
        "recall": {"test": {**whole, "models": {"villa": told({"i2t@1": 5.0}, **{"i2t@1": [4.0, 6.0]})}}},
        "classes": {"test": {**whole, "models": {"villa": told({"top1": 5.0, "balanced": 5.0}, top1=[4.0, 6.0])}}},
        "fine_grained": {
            "test": {
                "subsets": {"hard": {**whole, "models": {"villa": told({"mean_rank": 2.0}, mean_rank=[1.5, 2.5])}}}
            }
        },
    }
    return baseline.of_results(Nothing(), results)  # type: ignore[arg-type]


def test_without_intervals_the_same_figures_are_held() -> None:
    drawn, bare = of_resamples(200), of_resamples(0)
    names = ["detection/villa/truth/all/AP50", "detection/villa/truth/top1", "recall/villa/i2t@1", "classes/villa/top1"]
    names = [f"test/{n}" for n in [*names, "fine_grained/hard/villa/mean_rank"]]
    assert list(drawn.metrics) == names == list(bare.metrics)
    assert all(m.interval for m in drawn.metrics.values()) and not any(m.interval for m in bare.metrics.values())
    for then, now, whose in ((drawn, bare, "the figure has now"), (bare, drawn, "the baseline has")):
        found = baseline.check(then, now)
        assert len(found) == 5 and all(
            f"too narrow, as {whose} no interval (evaluate.bootstrap: 0" in str(d) for d in found
        )
    lower = Measured("now", {n: Metric(m.value + 0.1 * (-1) ** ("rank" not in n)) for n, m in bare.metrics.items()}, {})
    with pytest.raises(BelowBaselineError, match="5 of 5 figures"):
        baseline.check(bare, lower)


def test_a_figure_that_has_no_interval_any_more_is_said_to_be_measured() -> None:
    then = Measured("then", {"test/classes/villa/balanced": metric(5.0)}, {})
    with pytest.raises(BelowBaselineError, match=r"measured now without an interval.*; set evaluate\.bootstrap"):
        baseline.check(then, of_resamples(0))
    with pytest.raises(BelowBaselineError, match="not measured now"):
        baseline.check(Measured("then", {"test/classes/other/top1": metric(5.0)}, {}), of_resamples(0))


@pytest.mark.parametrize("place", ["", "folder", "folder/", "file/b.json", "file/deep/b.json"])
def test_a_place_that_cannot_be_written_is_named_before_any_work(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(VillaError) as raised:
        baseline.writable(f"{tmp_path}/{place}", "--write-baseline")
    said = str(raised.value)
    assert said.startswith(f"--write-baseline '{tmp_path}/{place}' ") and "set `run`" not in said
    why = (
        "cannot be written: a part of its path is a file; give a file"
        if "file" in place
        else "is a folder; give a file"
    )
    assert why in said


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("old")
    for place in ("b.json", "new/c.json"):
        store, name = baseline.writable(f"{tmp_path}/{place}", "--out")
        assert store.path(name) == f"{tmp_path}/{place}"
    assert (tmp_path / "b.json").read_text() == "old"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["b.json"]


# ---- runs


@pytest.fixture
def runs(measured_runs: tuple[Config, Config]) -> tuple[Config, Config]:
    good, bad = measured_runs
    return good, bad.model_copy(update={"seed": 4, "docmnist": bad.docmnist.model_copy(update={"target": 9})})


def test_a_run_is_its_own_baseline_and_a_worse_one_is_not(runs: tuple[Config, Config]) -> None:
    good, bad = (baseline.read(c.run) for c in runs)
    assert all(d.paired and d.value == 0 for d in baseline.check(good, good))
    with pytest.raises(BelowBaselineError) as raised:
        baseline.check(good, bad)
    said = str(raised.value)
    assert "test/villa/a2r" in said and "test/villa/r2a" in said and "one_to_one" not in said and "mapping" not in said
    baseline.check(bad, good)


def test_runs_stand_side_by_side(runs: tuple[Config, Config], tmp_path: Path) -> None:
    path = Path(compare.build(runs, str(tmp_path / "c.html")))
    page = Page(path.read_text(encoding="utf-8"))
    good, bad = (baseline.of_run(c.run).metrics["test/villa/a2r"] for c in runs)
    row = next(r for r in page.rows if [c.strip() for c in r[1:3]] == ["ViLLA", "A→R"])
    assert f"{good.value:.2f}" in row[3] and f"{bad.value:.2f}" in row[4] and "worse" in row[5] and "paired" in row[5]
    assert page.row("seed") == ["seed", "3", "4"] and page.row("docmnist.target")[2] == "9"
    assert "bad against good, ViLLA: A→R −" in page.text and "(worse)" in page.text
    assert "script" not in page.tags and "http" not in "".join(v for _, n, v in page.attributes if n in ("src", "href"))
    before = path.read_bytes()
    compare.build(runs, str(path))
    assert path.read_bytes() == before


def test_what_cannot_be_compared_is_said(runs: tuple[Config, Config], tmp_path: Path) -> None:
    with pytest.raises(VillaError, match="given twice"):
        compare.labels([runs[0].run, f"{runs[0].run}/"])
    with pytest.raises(VillaError, match="give 2 to 8"):
        compare.labels([f"run{i}" for i in range(9)])
    with pytest.raises(VillaError, match=r"--out .* is a folder"):
        compare.build(runs, str(tmp_path))
    assert compare.labels(["/a/x/run", "/a/y/run"]) == ["x/run", "y/run"]
    empty = runs[0].model_copy(update={"run": str(tmp_path)})
    with pytest.raises(VillaError, match=r"has no results\.json"):
        compare.read(empty, "empty")


def test_hostile_configs_stay_text(runs: tuple[Config, Config], tmp_path: Path) -> None:
    evil = runs[0].model_copy(update={"data": runs[0].data.model_copy(update={"train": HOSTILE})})
    page = Page(Path(compare.build((runs[1], evil), str(tmp_path / "c.html"))).read_text(encoding="utf-8"))
    assert "script" not in page.tags and HOSTILE in page.text


def test_a_run_that_was_measured_before_intervals_were_kept(runs: tuple[Config, Config], tmp_path: Path) -> None:
    old = runs[0].model_copy(update={"run": str(tmp_path / "old")})
    put(old, "results.json", json.dumps({"splits": {"test": {"villa": {"a2r": 10.0, "r2a": 10.0}}}}))
    found = baseline.differences(baseline.of_run(old.run), baseline.of_run(runs[0].run))
    assert [d.name for d in found] == ["test/villa/a2r", "test/villa/r2a"] and not any(
        d.paired or d.worse for d in found
    )
