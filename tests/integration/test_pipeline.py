"""The whole pipeline through the command line, in-process and on Ray."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from runs import ONE_TOWER, TINY, config_file, contents, markers, result_line, sets, villa

from cluster import cli, complete
from shards.digest import sha256
from shards.errors import VillaError
from villa_dist.config_file import load


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished local run and its result line."""
    folder = tmp_path_factory.mktemp("finished")
    ended = villa("quickstart", config_file(folder), *sets(f"run={folder}/run", *TINY))
    return folder / "run", result_line(ended)


def test_result_line_holds_what_is_promised(finished: tuple[Path, dict]) -> None:
    run, result = finished
    assert result["run"] == str(run) and Path(result["report"]).is_file()
    for model in ("one_to_one", "villa", "ground_truth"):
        assert 0 <= result["metrics"][model]["a2r"] <= 100 and 0 <= result["metrics"][model]["r2a"] <= 100
    assert set(result["metrics"]["mapping"]) >= {"precision", "recall", "f1"}
    assert (run / "config.yaml").is_file() and (run / "vocabulary.parquet").is_file()


def test_every_stage_has_the_samples_and_keys_of_base(finished: tuple[Path, dict]) -> None:
    from shards import manifest
    from shards.commit import StageFolder

    run, result = finished
    for split in ("train", "test"):
        base = manifest.read(StageFolder(f"{run}/{split}", "base"))
        assert base.total == result["images"][split] > 0
        for stage in ("truth", "regions", "pairs"):
            other = manifest.read(StageFolder(f"{run}/{split}", stage))
            assert (other.shards, other.samples, other.keys) == (base.shards, base.samples, base.keys)


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_run_leaves_verifies_clean(finished: tuple[Path, dict], split: str) -> None:
    line = result_line(villa("shards", "verify", str(finished[0] / split)))
    assert line["clean"], line["kinds"]
    assert {"base", "regions", "pairs", "truth"} <= set(line["stages"])


def test_a_run_is_whole_when_all_that_is_asked_for_is_measured_and_reported(finished: tuple[Path, dict]) -> None:
    run, _ = finished

    def lacking(*asked: str) -> list[str]:
        return complete.missing(load(None, [f"run={run}", *TINY, *asked]))

    kept = {name: (run / name).read_bytes() for name in ("results.json", "report.html")}
    results = json.loads(kept["results.json"])
    assert lacking() == []
    assert lacking("ray={workers: 7, gpus: true, start_seconds: 9, attempts: 2}") == [], "how, not what"
    # a job that died before it measured what was newly asked for leaves all files of the one before
    for more in ("evaluate.recall=[3]", "evaluate.bootstrap=7", "evaluate.baselines=[{weights: /published}]"):
        (told,) = lacking(more)
        assert "results.json is not of all that this config's `evaluate` asks for; run `villa evaluate`" in told
    assert lacking("evaluate.splits=[validation, test]")[0] == "ingest validation"

    def shown(page: bytes, results: bytes) -> bytes:
        return page.replace(sha256(kept["results.json"]).encode(), sha256(results).encode())

    older = json.dumps({k: v for k, v in results.items() if k != "asked"}).encode()
    others = json.dumps({**results, "weights": {"villa": "0" * 64}}).encode()
    unshown, report = "report (report.html is damaged, or not of results.json)", kept["report.html"]
    try:
        for data, page, told in (
            (kept["results.json"][:-20], report, "evaluate (results.json)"),
            (b"[]", report, "evaluate (results.json)"),
            (b"\xff", report, "evaluate (results.json)"),
            (older, report, unshown),
            (older, shown(report, older), "is not of all that this config's `evaluate` asks for"),
            (others, shown(report, others), "is of other weights than the run holds"),
            (kept["results.json"], b"", unshown),
            (kept["results.json"], report[: len(report) // 2], unshown),
        ):
            (run / "results.json").write_bytes(data)
            (run / "report.html").write_bytes(page)
            (found,) = lacking()
            assert told in found, (told, found)
    finally:
        for name, content in kept.items():
            (run / name).write_bytes(content)


def test_repeating_the_command_does_nothing_again(finished: tuple[Path, dict]) -> None:
    run, result = finished
    before, bytes_before = markers(run), contents(run)
    again = result_line(villa("run", config_file(run.parent), *sets(f"run={run}", *TINY)))
    assert again["metrics"] == result["metrics"]
    assert markers(run) == before and contents(run) == bytes_before


def test_changed_config_is_refused_and_named_then_forced(finished: tuple[Path, dict], tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    changed = [*sets(f"run={run}", *TINY), "--set", "pairs.threshold=0.1"]
    refused = villa("run", config_file(tmp_path), *changed)
    assert refused.returncode == 2 and refused.stdout == ""
    assert "pairs.threshold: 0.5 -> 0.1" in refused.stderr and "--force" in refused.stderr
    assert "Traceback" not in refused.stderr
    forced = villa("run", config_file(tmp_path), *changed, "--force")
    assert result_line(forced)["metrics"]["mapping"] != finished[1]["metrics"]["mapping"]
    kept, redone = markers(finished[0]), markers(run)
    assert {k for k in kept if "/base/" in k} <= set(redone)


def test_ray_gives_the_same_bytes(finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a relative run folder, as the quickstart has: workers run elsewhere."""
    monkeypatch.chdir(tmp_path)
    overrides = [o for o in TINY if o != "runner=local"]
    on_ray = result_line(villa("run", config_file(tmp_path), *sets("run=run", *overrides)))
    assert on_ray["metrics"] == finished[1]["metrics"]
    assert contents(tmp_path / "run") == contents(finished[0])


@pytest.mark.slow
def test_fused_pairs_on_ray_give_the_same_pairs_models_and_metrics(finished: tuple[Path, dict], tmp_path: Path) -> None:
    """Nothing differs but what is not made: regions of the test split. Manifests of pairs name another config."""
    overrides = [o for o in TINY if o != "runner=local"]
    fused = [*overrides, f"run={tmp_path}/run", "pairs.fused=true", "regions.decode_threads=2"]
    result = result_line(villa("run", config_file(tmp_path), *sets(*fused)))
    assert result["metrics"] == finished[1]["metrics"]
    theirs, mine = contents(finished[0]), contents(tmp_path / "run")
    missing = {name for name in theirs if name.startswith("test/regions/")}
    assert missing and set(theirs) - set(mine) == missing and set(mine) < set(theirs)
    changed = {name for name in mine if mine[name] != theirs[name]}
    assert changed == {"train/pairs/manifest.parquet", "test/pairs/manifest.parquet"}


@pytest.mark.slow
def test_fused_pairs_learn_from_a_sample_of_shards(finished: tuple[Path, dict], tmp_path: Path) -> None:
    frozen = [*ONE_TOWER, "mapping.encoder=frozen", "regions.keep_embeddings=0.4"]
    fused = [*TINY, f"run={tmp_path}/run", "pairs.fused=true", *frozen]
    result = result_line(villa("run", config_file(tmp_path), *sets(*fused)))
    run = tmp_path / "run"
    kept = {p.name for p in (run / "train/embeddings").glob("0*.parquet")}
    every = {p.name for p in (finished[0] / "train/regions").glob("0*.parquet")}
    assert len(kept) == 2 < len(every) and kept == {p.name for p in (run / "train/regions").glob("0*.parquet")}
    assert {p.name for p in (run / "train/pairs").glob("0*.parquet")} == every and result["metrics"]["mapping"][
        "f1"
    ] > 0
    status = result_line(villa("status", str(run)))
    assert status["stages"]["train/pairs"]["complete"] and status["stages"]["train/regions"]["complete"]


@pytest.mark.parametrize("mapping", ["per_attribute", "shared"])
def test_frozen_mapping_with_the_papers_loss(finished: tuple[Path, dict], tmp_path: Path, mapping: str) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    paper = [f"mapping.head={mapping}", "mapping.encoder=frozen", "mapping.loss=contrastive", "pairs.assign=relative"]
    result = result_line(villa("run", config_file(tmp_path), *sets(f"run={run}", *TINY, *ONE_TOWER, *paper), "--force"))
    assert (run / "train/embeddings/000000.parquet").is_file()
    assert 0 < result["metrics"]["mapping"]["f1"] <= 100


def test_two_workers_train_what_one_does(finished: tuple[Path, dict], tmp_path: Path) -> None:
    """Two ranks see the same global batches; only the order of additions differs."""
    import torch
    from safetensors.torch import load_file

    config = config_file(tmp_path)
    overrides = sets(f"run={tmp_path}/run", *TINY, "pretrain.workers=2")
    for stage in ("ingest", "vocabulary", "pretrain"):
        result_line(villa(stage, config, *overrides))
    one = load_file(finished[0] / "models/one_to_one/model.safetensors")
    two = load_file(tmp_path / "run/models/one_to_one/model.safetensors")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=2e-2, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_shards_open_unchanged_in_webdataset(finished: tuple[Path, dict]) -> None:
    import webdataset as wds

    from shards.commit import StageFolder
    from shards.reader import BaseShard

    run = finished[0]
    base = BaseShard(StageFolder(f"{run}/train", "base"), "000000")
    theirs = list(wds.WebDataset(str(run / "train/base/000000.tar"), shardshuffle=False))
    assert [s["__key__"] for s in theirs] == base.keys
    for row, sample in enumerate(theirs):
        assert {k: v for k, v in sample.items() if not k.startswith("__")} == base.sample(row)


def test_status_and_report_read_a_finished_run(finished: tuple[Path, dict]) -> None:
    run = finished[0]
    status = result_line(villa("status", str(run)))
    assert status["stages"]["train/pairs"]["complete"] and status["models"]["villa"]
    missing = villa("status", str(run / "nowhere"))
    assert missing.returncode == 2 and "not the folder of a run" in missing.stderr


def test_figures_are_held_against_a_baseline_and_a_run(
    finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    baseline = tmp_path / "baseline.json"
    evaluate = ("evaluate", config_file(tmp_path), *sets(f"run={run}", *TINY))

    def villa_here(*arguments: str) -> tuple[int, dict, str]:
        """The command in this process: code, result line, stderr."""
        monkeypatch.setattr(sys, "argv", ["villa", *arguments])
        code, said = cli._run_app(), capfd.readouterr()
        return code, json.loads(said.out or "{}"), said.err

    code, result, _ = villa_here(*evaluate, "--write-baseline", str(baseline))
    assert code == 0 and result["baseline"] == str(baseline)
    higher = json.loads(baseline.read_text())
    metric = higher["metrics"]["test/villa/a2r"]
    metric["value"] += 5
    metric["draws"] = [v + 5 for v in metric["draws"]]
    baseline.write_text(json.dumps(higher))
    code, result, said = villa_here(*evaluate, "--compare", str(baseline), "--write-baseline", str(baseline))
    assert code == 5 and "baseline" not in result
    assert result["compared"]["figures"]["test/villa/r2a"]["interval"] == [0.0, 0.0], "the same weights, paired"
    assert f"1 of {len(higher['metrics'])} figures are below the baseline" in said and "test/villa/a2r" in said
    assert json.loads(baseline.read_text()) == higher, "a baseline is not replaced by figures below it"
    other = shutil.copytree(run, tmp_path / "other")
    page = tmp_path / "c.html"
    code, result, _ = villa_here("report", str(run), str(other), "-o", str(page))
    assert code == 0 and result["report"] == str(page) and "within chance" in page.read_text(encoding="utf-8")
    code, _, said = villa_here("report", str(run), str(run))
    assert code == 2 and "given twice" in said


def test_docmnist_command_makes_three_splits(tmp_path: Path) -> None:
    small = ["docmnist.budget={train: 300, validation: 200, test: 200}"]
    result = result_line(villa("docmnist", str(tmp_path / "doc"), *sets(*small)))
    assert set(result["images"]) == {"train", "validation", "test"}
    assert (tmp_path / "doc/validation/truth/000000.parquet").is_file()


def test_a_run_and_its_checkpoints_are_exported(finished: tuple[Path, dict], tmp_path: Path) -> None:
    """The last checkpoint holds the weights of the finished model, to the byte, though DeepSpeed wrote it."""
    from villa_dist.export.folder import export

    run, job = finished[0], finished[0] / "models" / "villa"
    last, before = sorted((job / "checkpoints").glob("step-*"))[::-1]
    made = export(str(run), str(tmp_path / "run"))
    assert (made["job"], made["step"], made["kind"]) == ("villa", None, "conv")
    assert export(str(last), str(tmp_path / "last"))["step"] == 6
    assert export(str(before), str(tmp_path / "before"))["step"] == 4
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "last", "before")}
    assert weights["run"] == weights["last"] != weights["before"]
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert f"| test | {finished[1]['metrics']['villa']['a2r']} |" in card
    assert "Nothing was measured" in (tmp_path / "last" / "README.md").read_text(encoding="utf-8")
    torn = tmp_path / "models" / "villa" / "checkpoints" / last.name
    shutil.copytree(last, torn)
    file = next(torn.glob("*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(VillaError, match=r"does not have the content its marker recorded.*no whole checkpoint"):
        export(str(torn), str(tmp_path / "torn"))
    shutil.copytree(last, torn.with_name("step-00000009"), dirs_exist_ok=True)
    shutil.copy(job / "config.json", torn.parents[1])  # of a job that is not finished: what it is bound to
    assert export(str(torn.with_name("step-00000009")), str(tmp_path / "unfinished"))["step"] == 6
    assert (tmp_path / "unfinished" / "model.safetensors").read_bytes() == weights["run"]


def test_what_was_seen_while_a_run_trained(finished: tuple[Path, dict]) -> None:
    from villa_dist.train.journal import read_metrics

    seen = {
        job: read_metrics(finished[0] / "models" / job / "metrics.jsonl")[-1]
        for job in ("one_to_one", "mapping", "villa")
    }
    for line in seen.values():
        assert line["step"] == 6 and line["gradient_norm"] > 0 and line["mfu"] > 0 and line["memory_bytes"] > 0
    assert seen["villa"]["positives_per_region"] > 0 and seen["one_to_one"]["scale"] == pytest.approx(14.3, abs=0.5)
    assert seen["mapping"]["mentions_per_image"] > 0 and "scale" not in seen["mapping"]
    assert list((finished[0] / "models" / "villa" / "tensorboard").iterdir())
