"""What a run's folder says of itself: its config, its report, where it may be, and what a changed job is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from runs import TINY, config_file, result_line, sets, villa


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    result_line(villa("run", config_file(folder), *sets(f"run={folder}/run", *TINY)))
    return folder / "run"


def refused(*arguments: str) -> str:
    """What a command that ends as a user's mistake says."""
    ended = villa(*arguments)
    assert ended.returncode == 2 and ended.stdout == "", ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_moved_run_is_reported_where_it_is(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    (moved / "report.html").unlink()
    before = (finished / "report.html").stat().st_mtime_ns
    said = result_line(villa("report", config_file(tmp_path), *sets(f"run={moved}")))
    assert said["report"] == str(moved / "report.html") and (moved / "report.html").is_file()
    assert (finished / "report.html").stat().st_mtime_ns == before


def test_a_run_that_is_not_there_is_not_reported(tmp_path: Path) -> None:
    assert "no config.yaml" in refused("report", config_file(tmp_path), *sets(f"run={tmp_path}/typo"))
    assert not (tmp_path / "typo").exists()


def test_a_refused_config_is_not_the_runs(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "config.yaml").read_bytes()
    refused("run", config_file(tmp_path), *sets(f"run={run}", *TINY, "train.steps=7"))
    assert (run / "config.yaml").read_bytes() == before


def test_results_of_other_weights_are_not_reported(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    given = [config_file(tmp_path), *sets(f"run={run}", *TINY, "pretrain.steps=5")]
    result_line(villa("pretrain", *given, "--force"))
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrain"]["steps"] == 5
    assert "one_to_one" in refused("report", *given)


def test_a_run_on_an_object_store_is_refused_before_any_work(tmp_path: Path) -> None:
    said = refused("run", config_file(tmp_path), *sets("run=s3://bucket/run", *TINY))
    assert "s3://bucket/run" in said and "pretrain" in said


@pytest.mark.parametrize("run", ["file", "file/below"])
def test_a_run_that_is_a_file(tmp_path: Path, run: str) -> None:
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / run) in refused("ingest", config_file(tmp_path), *sets(f"run={tmp_path}/{run}", *TINY))


def test_another_number_of_workers_goes_on_from_the_checkpoint(finished: Path, tmp_path: Path) -> None:
    """From the last step, so that what is written is what was: the weights and the buffers, which no loss would show."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    folder = run / "models" / "one_to_one"
    before = safetensors.torch.load_file(folder / "model.safetensors")
    for name in ("done.json", "model.safetensors"):
        (folder / name).unlink()
    said = villa("pretrain", config_file(tmp_path), *sets(f"run={run}", *TINY, "pretrain.workers=2"))
    result_line(said)
    assert "of 1 workers is converted for 2" in said.stderr and "resumes at step 6" in said.stderr
    after = safetensors.torch.load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not list((folder / "checkpoints").glob("universal*")) and not list((folder / "ranks").glob("*"))


def test_keys_are_listed_with_their_defaults() -> None:
    keys = result_line(villa("keys"))["keys"]
    assert keys["run"] == "required" or isinstance(keys["run"], str)
    assert keys["train.steps"] == 400 and keys["regions.proposals"] == "annotations"


def test_a_second_run_starts_from_the_first_ones_vlm(finished: Path, tmp_path: Path) -> None:
    """It is bound to the weights, not to their path."""
    run, first = tmp_path / "run", tmp_path / "first"
    shutil.copytree(finished / "models/villa", first)
    given = [config_file(tmp_path), *sets(f"run={run}", *TINY, "pretrain.steps=0")]
    for stage in ("ingest", "vocabulary", "pretrain"):
        result_line(villa(stage, *given, "--set", f"pretrain.start={first}"))
    taken = (run / "models/one_to_one/model.safetensors").read_bytes()
    assert taken == (finished / "models/villa/model.safetensors").read_bytes()
    result_line(villa("pretrain", *given, "--set", f"pretrain.start={finished}/models/villa"))
    said = refused("pretrain", *given, "--set", f"pretrain.start={finished}/models/one_to_one")
    assert "start:" in said and "--force" in said
