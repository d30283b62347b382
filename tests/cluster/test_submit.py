"""Submitting: what is refused before anything is sent, what is sent, and what is made of a job's log and of its data."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import auth, complete, preflight, probe, submit
from cluster.submit import HERE, RefusedJob, Seen, Submission, entrypoint, follow
from shards.errors import VillaError
from villa_dist import claims
from villa_dist.config import Config
from villa_dist.config_file import as_given, dump
from villa_dist.revision import SUBMITTED
from villa_dist.stages import registry

PROBED = {"problems": [], "remarks": [], "nodes": 1, "cpus": 2.0, "gpus": 0.0, "ray": "2", "python": "3.11.1"}


# ---- before anything is sent


SHARED = ["run=/shared/run", "data={source: shards, train: s3://bucket/train}", "model.image.kind=hf"]


def check(folder: Path, *sets: str) -> None:
    preflight.check_paths(as_given(None, [*SHARED, "model.weights=/shared/clip", *sets]), folder, preflight.EXCLUDED)


@pytest.mark.parametrize("key", ["run", "data.test", "digits.mnist_dir", "model.text.vocabulary"])
def test_relative_paths_are_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "folder").touch()  # it would be sent along, and each node have it elsewhere
    with pytest.raises(VillaError, match=rf"{key}=some/folder is relative.*--set {key}="):
        check(tmp_path, f"{key}=some/folder")


def test_shared_paths_and_hub_ids_are_taken(tmp_path: Path) -> None:
    check(tmp_path, "model.weights=openai/clip-vit-base-patch16", "evaluate.baselines=[{weights: openai/clip}]")
    with pytest.raises(VillaError, match=r"model\.weights=\./clip is relative"):
        check(tmp_path, "model.weights=./clip")
    with pytest.raises(VillaError, match="run=s3://bucket/run: training keeps checkpoints"):
        check(tmp_path, "run=s3://bucket/run")


def test_weights_that_are_not_sent_along_are_refused(tmp_path: Path) -> None:
    """A folder here of the form of a hub id is meant, and what is sent has no weights."""
    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "models" / "clip" / "config.json").touch()
    for sets, key in (
        ("evaluate.baselines=[{weights: models/clip}]", r"evaluate\.baselines\[0\]\.weights=models/clip"),
        ("evaluate.baselines=[{weights: ./elsewhere}]", r"evaluate\.baselines\[0\]\.weights=\./elsewhere"),
        ("model.weights=models/clip", r"model\.weights=models/clip"),
        ("data.mix=[{train: runs/coco}]", r"data\.mix\[0\]\.train=runs/coco"),
    ):
        with pytest.raises(VillaError, match=f"{key} is relative"):
            check(tmp_path, sets)


FILES = {
    "evaluate.detection.truth": "evaluate.detection={truth: FILE}",
    "evaluate.detection.templates": "evaluate.detection={templates: FILE}",
    "evaluate.fine_grained.annotations": "evaluate.fine_grained={annotations: FILE}",
    "evaluate.fine_grained.annotations.hard": "evaluate.fine_grained={annotations: {hard: FILE}}",
    "evaluate.classes.labels": "evaluate.classes={prompts: {a: [], b: []}, labels: FILE}",
    "evaluate.classes.prompts": "evaluate.classes={prompts: FILE, field: label}",
    "vocabulary.lists[0]": "vocabulary.lists=[FILE]",
}


@pytest.mark.parametrize("key", FILES)
def test_files_are_taken_where_they_are_sent_along(key: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    for name in ("lists/a.json", "data/a.json", "runs/a.json", "../a.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / ".gitignore").write_text("data/\n")

    def asked(path: str) -> None:
        check(folder, FILES[key].replace("FILE", path))

    for sent in ("lists/a.json", "./lists/a.json", "/shared/a.json"):
        asked(sent)
    for path, why in (
        ("lists/b.json", "does not exist"),
        ("runs/a.json", "is left out"),
        ("data/a.json", "is left out"),
        ("../a.json", "is left out .* or outside of it"),
        ("~/no/such/a.json", "does not exist"),
    ):
        with pytest.raises(
            VillaError, match=rf"{re.escape(key)}={re.escape(path)} {why}.*that is sent along, or an absolute"
        ):
            asked(path)


def test_names_of_lists_that_are_built_in_are_no_files(tmp_path: Path) -> None:
    check(tmp_path, "vocabulary.lists=[coco]")


def test_what_is_sent_leaves_out_what_ray_leaves_out(tmp_path: Path) -> None:
    for name, size in {
        "villa_dist/__init__.py": 10,
        "shards/__init__.py": 10,
        "cluster/__init__.py": 10,
        "configs/a.yaml": 20,
        "data/big.bin": 5000,
        "ignored/x": 9000,
        "runs/old/train.tar": 9000,
        ".venv/lib/a.py": 9000,
        ".git/objects/a": 9000,
        "cluster/__pycache__/a.pyc": 9000,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("ignored/\n")
    upload = preflight.look_at(tmp_path, preflight.EXCLUDED)
    assert upload.package and upload.folders[0] == ("data", 5000)
    assert {name for name, _ in upload.folders} == {"data", "configs", "villa_dist", "shards", "cluster", ".gitignore"}
    assert upload.bytes == 5050 + len("ignored/\n")
    without = preflight.look_at(tmp_path, (*preflight.EXCLUDED, "data"))
    assert without.bytes == upload.bytes - 5000


def test_an_upload_over_the_limit_names_the_largest_folders(tmp_path: Path) -> None:
    large = preflight.Upload(300 << 20, 5, (("photos", 200 << 20), ("more", 100 << 20)), True)
    with pytest.raises(
        VillaError, match=r"300 MiB .* limit of 100 MiB.*photos 200 MiB, more 100 MiB.*--exclude.*\.venv"
    ):
        preflight.check_upload(large, tmp_path, preflight.EXCLUDED)
    preflight.check_upload(preflight.Upload(preflight.LIMIT, 1, (), True), tmp_path, ())


def test_a_config_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert preflight.config_in(str(tmp_path / "here" / "a.yaml"), tmp_path / "here") == "a.yaml"
    with pytest.raises(VillaError, match="outside of the working folder"):
        preflight.config_in(str(tmp_path / "a.yaml"), tmp_path / "here")


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auth.MODE, "")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")  # which Ray's client would take instead
    with pytest.raises(VillaError, match=r"no Ray job server answers at http://127\.0\.0\.1:1 .*--address"):
        submit.connect("http://127.0.0.1:1", insecure=True)


# ---- the job


def of(config: str, *sets: str) -> Submission:
    return Submission(config, sets, Config(run="/shared/run"), Path(), ())


def test_the_parts_of_a_job_stop_at_the_first_that_fails(tmp_path: Path) -> None:
    """The shell command itself, with a `python` that says what it was asked and fails where it is told to."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"; echo; case "$2" in "$FAIL") exit 3;; esac\n')
    python.chmod(0o755)
    command = entrypoint(of("configs/a b.yaml", "run=/shared/it's", "seed=1"))
    lines = {}
    for fail in ("none", submit.LOOK):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FAIL": fail}
        done = subprocess.run(["/bin/sh", "-c", command], env=env, capture_output=True, text=True)
        lines[fail] = (done.returncode, done.stdout.splitlines())
    assert lines["none"][0] == 0 and len(lines["none"][1]) == 2
    assert lines["none"][1][1] == "-m|cluster.probe|run|configs/a b.yaml|--set|run=/shared/it's|--set|seed=1|"
    assert (lines[submit.LOOK][0], len(lines[submit.LOOK][1])) == (3, 1)


def test_the_commit_travels_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy that is sent has no .git; what runs from an image is not of the folder's commit."""
    sent: list[dict[str, Any]] = []
    client = SimpleNamespace(submit_job=lambda **job: sent.append(job["runtime_env"]["env_vars"]))
    monkeypatch.setattr(submit, "commit", lambda folder: "0123456789ab-dirty")
    for package in (True, False):
        monkeypatch.setattr(preflight, "look_at", lambda folder, excludes: preflight.Upload(1, 1, (), package))  # noqa: B023
        submit.submit(client, of("configs/a.yaml"))
    assert sent[0][SUBMITTED] == "0123456789ab-dirty" and set(sent[1]) == {probe.ASKED}


def test_the_look_at_the_heads_python_runs() -> None:
    done = subprocess.run([sys.executable, "-c", submit.LOOK], capture_output=True, text=True, check=True)
    seen = Seen(print)
    seen.take(done.stdout)
    assert seen.package and seen.python == sys.version.split()[0]


class Client:
    """A job server with one job, whose log breaks off after each of `pieces`."""

    def __init__(self, pieces: list[str], status: str = "SUCCEEDED") -> None:
        self.pieces, self.end, self.calls = pieces, status, 0

    @property
    def log(self) -> str:
        return "".join(self.pieces)

    def get_job_status(self, name: str) -> Any:
        return SimpleNamespace(value=self.end if self.calls >= len(self.pieces) else "RUNNING")

    def get_job_logs(self, name: str) -> str:
        return self.log

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.calls += 1
        for piece in self.pieces[: self.calls]:  # from its start, each time
            yield piece
        if self.calls < len(self.pieces):
            raise RuntimeError("WebSocket connection closed unexpectedly")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.001)


def log_of(*lines: str, probed: dict[str, Any] | None = None) -> list[str]:
    whole = f"{HERE}3.11.1 True True\n{probe.MARK}{json.dumps(probed or PROBED)}\n" + "".join(f"{x}\n" for x in lines)
    return [whole[i : i + 17] for i in range(0, len(whole), 17)]


def test_a_log_that_is_cut_off_is_told_once() -> None:
    told: list[str] = []
    assert follow(Client(log_of("first", "second", "third")), "job", told.append) == "SUCCEEDED"
    assert told == ["first", "second", "third"]


def test_a_refusal_names_every_problem() -> None:
    probed = {**PROBED, "problems": ["Python 3.9", "no storage"]}
    with pytest.raises(RefusedJob, match=r"Python 3\.9\n  no storage"):
        follow(Client(log_of(probed=probed), "FAILED"), "job", print)


def test_a_head_without_the_package_is_told() -> None:
    with pytest.raises(RefusedJob, match=r"\(3\.9\.2\) has no villa_dist or no Ray: submit from a clone"):
        follow(Client([f"{HERE}3.9.2 False True\n", "No module named cluster\n"], "FAILED"), "job", print)


def test_without_following_it_ends_when_the_checks_are_done() -> None:
    client = Client(log_of(*["more"] * 50))
    told: list[str] = []
    assert follow(client, "job", told.append, until_started=True) == "RUNNING"
    assert client.calls < len(client.pieces)


class Lost(Client):
    """A job whose log ends in the middle, with what asking for its status raises from then on; `hangs`: without an end."""

    def __init__(self, error: Exception, *, hangs: bool = False) -> None:
        super().__init__(log_of("first"), "RUNNING")
        self.error, self.hangs, self.asked = error, hangs, 0

    def get_job_status(self, name: str) -> Any:
        self.asked += 1
        raise self.error

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        if self.asked:
            raise ConnectionRefusedError("nobody there")
        for piece in self.pieces:
            yield piece
        if self.hangs:
            await asyncio.sleep(3600)


def test_a_head_that_is_lost_is_told_once_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(submit, "AWAY_SECONDS", 0.3)
    client, told = Lost(ConnectionRefusedError("nobody there")), []
    with caplog.at_level("INFO"), pytest.raises(submit.LostJob, match=r"answered for 0 s: job job .*submit again"):
        follow(client, "job", told.append)
    assert told == ["first"] and client.asked > 10
    assert sum("is cut off" in record.message for record in caplog.records) <= 1


def test_a_head_that_closes_no_connection_is_found_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(submit, "AWAY_SECONDS", 0.1)
    with pytest.raises(submit.LostJob, match="no job server has answered"):
        follow(Lost(TimeoutError("no answer"), hangs=True), "job", print)


def test_another_cluster_in_the_place_of_the_lost_one_is_told() -> None:
    from ray.exceptions import AuthenticationError

    unknown = RuntimeError("Request failed with status code 404: Job job does not exist.")
    for error, said in ((unknown, "does not know job job"), (AuthenticationError("no"), "takes another token")):
        with pytest.raises(submit.LostJob, match=rf"{said}.*[Ss]ubmit again") as caught:
            follow(Lost(error), "job", print)
        assert caught.value.exit_code == 1


# ---- on the cluster


def test_storage_that_is_written_to_exclusively_is_fine_and_left_clean(tmp_path: Path) -> None:
    assert probe.storage_trouble(str(tmp_path / "run")) == ""
    assert list((tmp_path / "run").iterdir()) == []


def test_storage_on_an_object_store(s3: Any) -> None:
    assert probe.storage_trouble(s3.url("run")) == "" and s3.names() == []
    assert "there is no bucket" in probe.storage_trouble("s3://nobody-has-this/run")


def test_storage_without_exclusive_creation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(self: Any, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(probe.Store, "put_if_absent", always)
    assert "If-None-Match" in probe.storage_trouble(str(tmp_path))


def test_a_file_in_the_place_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert str(tmp_path / "run") in probe.storage_trouble(str(tmp_path / "run"))


def test_a_node_with_another_python_villa_or_folder_is_told(tmp_path: Path) -> None:
    from villa_dist import __version__

    here = sys.version.split()[0]
    (tmp_path / "record").write_text("{}")
    assert probe.node_trouble(str(tmp_path), "record", here, __version__) == ""
    assert "and the head has 3.8.1" in probe.node_trouble(str(tmp_path), "record", "3.8.1", __version__)
    assert "and the head has 0.0.0" in probe.node_trouble(str(tmp_path), "record", here, "0.0.0")
    assert "not the folder that the head sees" in probe.node_trouble(str(tmp_path / "own"), "record", here, __version__)


def test_a_cluster_too_small_is_a_problem_unless_it_is_to_grow() -> None:
    def told(training: int, data: int | None, gpus: Any, up: tuple[float, float]) -> tuple[list[str], list[str]]:
        problems: list[str] = []
        remarks: list[str] = []
        probe.sized({"training": training, "data": data, "gpus": gpus}, *up, problems, remarks)
        return problems, remarks

    assert told(2, None, "auto", (2, 0)) == told(2, None, "auto", (0, 2)) == told(2, 2, True, (2, 2)) == ([], [])
    (problem,) = told(4, None, "auto", (2, 3))[0]
    assert "training wants 4 workers and the cluster has 2 CPUs and 3 GPUs" in problem and "ray.gpus=true" in problem
    assert told(4, None, False, (2, 8))[0] and not told(4, None, False, (4, 0))[0]
    problems, (gpus, workers) = told(4, 64, True, (0, 0))
    assert not problems and "4 GPUs and 0 are up" in gpus and "ray.workers=64 and the cluster has 0 CPUs" in workers


def test_the_first_stages_load_no_torch_and_every_stage_is_where_its_name_says() -> None:
    """A node that checks itself loads what the first stage needs: a second and a half less than with torch."""
    first = "import sys, villa_dist.stages.ingest, villa_dist.stages.vocabulary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", first], cwd=Path(__file__).parents[2]).returncode == 0
    for name, stage in registry.STAGES.items():
        assert callable(getattr(import_module(f"villa_dist.stages.{name}"), stage))
    assert all(find_spec(name) for name in probe.LATER)


# ---- the data's word


def test_nothing_is_complete_of_a_run_that_is_not_there(tmp_path: Path) -> None:
    lacking = complete.missing(Config(run=str(tmp_path / "run")))
    assert lacking[0] == "ingest train" and "train villa" in lacking and "report (report.html)" in lacking


@pytest.mark.parametrize("left", ["", "[]", "{", '{"config": 3}', "\x00"])
def test_a_damaged_record_is_none(tmp_path: Path, left: str) -> None:
    (tmp_path / probe.RECORDS).mkdir()
    (tmp_path / probe.RECORDS / "job.json").write_text(left)
    assert complete.record(str(tmp_path), "job") is None


def test_a_record_of_another_version_is_told() -> None:
    with pytest.raises(VillaError, match=r"none of this version of villa .*train\.steps_of_old.*ask with the version"):
        complete.as_config("train: {steps_of_old: 3}")


def test_files_that_a_submitted_job_has_elsewhere_are_the_same_question(tmp_path: Path) -> None:
    from shards import manifest
    from shards.commit import StageFolder

    manifest.write(StageFolder(str(tmp_path / "test"), "base"), [])

    def asked(folder: str, *sets: str) -> str:
        given = ["data={source: shards, train: /d, test: /d}", f"evaluate.detection={{truth: {folder}/truth.json}}"]
        return claims.results(as_given(None, [f"run={tmp_path}", *given, *sets]))

    assert asked("/here") == asked("/tmp/ray/session/there")
    assert asked("/here") != asked("/here", "evaluate.detection.truth=/here/other.json")
    assert asked("/here") != asked("/here", "evaluate.detection.engine=official")
    baselines = [f"evaluate.baselines=[{{weights: {place}/clip}}]" for place in ("/a", "/b")]
    assert asked("/here", baselines[0]) != asked("/here", baselines[1]), "weights are no file that is sent along"


def test_a_config_travels_as_text() -> None:
    config = as_given(None, ["run=/shared/ünïcode", "mapping.null=false", "train.learning_rate=1e-3"])
    assert complete.as_config(dump(config)) == config
    assert shlex.split(shlex.join(["--set", "run=/shared/ünïcode"]))[1] == "run=/shared/ünïcode"
