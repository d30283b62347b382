"""Commits: exactly one output a shard, nothing half-done visible, and errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shard_samples import PLAIN, commit_base, commit_file, files_below, marker

from shards.commit import Marker, StageFolder
from shards.errors import ShardError, StaleStageError, StorageFullError, VillaError
from shards.reader import BaseShard

DATA = b"0123456789" * 3000


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return StageFolder(str(tmp_path), "base")


def folder(stage: StageFolder) -> Path:
    return Path(stage.store.path())


def committed(stage: StageFolder, shard: str = "000000") -> bytes:
    """The output a reader finds through the marker, checked against it."""
    output = stage.marker(shard).outputs[0]
    data = stage.store.read(stage.locate(output))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (output.bytes, output.sha256)
    return data


def test_a_commit_leaves_the_output_its_marker_and_nothing_else(stage: StageFolder) -> None:
    made = commit_file(stage, "000000", DATA)
    assert made == stage.marker("000000")
    assert committed(stage) == DATA
    assert stage.shards_done() == ["000000"]
    assert files_below(folder(stage)) == ["000000.bin", "000000.done.json"]


def test_a_marker_says_all_it_was_given(stage: StageFolder) -> None:
    made = commit_base(stage, "000003", PLAIN)
    again = Marker.from_bytes(made.to_bytes(), "here")
    assert again == made
    assert [o.file for o in again.outputs] == ["000003.idx", "000003.tar"]
    assert again.output(".tar").bytes == (folder(stage) / "000003.tar").stat().st_size
    with pytest.raises(ShardError, match=r"shard 000003 in base names no \.parquet output"):
        again.output(".parquet")


def test_the_second_worker_gets_the_first_ones_marker_and_leaves_nothing(stage: StageFolder) -> None:
    first = commit_file(stage, "000000", b"first")
    second = commit_file(stage, "000000", b"second")
    assert second == first
    assert committed(stage) == b"first"
    assert files_below(folder(stage)) == ["000000.bin", "000000.done.json"]


@pytest.mark.parametrize("error", [ValueError("decoder"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_inside_an_attempt_leaves_nothing(stage: StageFolder, error: BaseException) -> None:
    with pytest.raises(type(error)), stage.attempt("000000") as attempt:
        attempt.open("000000.bin").write(DATA)
        attempt.open("quarantine/000000.bin").write(DATA)
        raise error
    assert files_below(folder(stage)) == []
    assert stage.shards_done() == []


def test_an_attempt_that_is_not_committed_leaves_nothing(stage: StageFolder) -> None:
    with stage.attempt("000000") as attempt:
        attempt.write("000000.bin", DATA)
    assert files_below(folder(stage)) == []


def test_a_live_workers_attempt_survives_the_clean_up(stage: StageFolder) -> None:
    with stage.attempt("000000") as attempt:
        file = attempt.open("000000.bin")
        file.write(DATA)
        file.flush()
        StageFolder(stage.dataset_url, "base").settle_all()
        attempt.commit(lambda outputs: marker("000000", outputs))
    assert committed(stage) == DATA


def test_a_dead_workers_attempt_is_collected(stage: StageFolder) -> None:
    with stage.attempt("000000") as attempt:
        name = attempt.name
    host_pid = name.split(".")[-2]
    host, _, _ = host_pid.rpartition("-")
    orphan = folder(stage) / ".attempts" / f"000000.{host}-{2**22 + 1}.00ff00ff"  # above the largest pid there can be
    orphan.mkdir(parents=True)
    (orphan / "000000.bin").write_bytes(DATA)
    stage.settle_all()
    assert files_below(folder(stage)) == []
    assert not orphan.parent.exists()


def test_a_damaged_marker_is_named_with_the_remedy(stage: StageFolder) -> None:
    commit_file(stage, "000000", DATA)
    path = folder(stage) / "000000.done.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], b"[]", b"null", b"{}", whole.replace(b'"samples"', b'"samplez"'), b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"000000\.done\.json is damaged .*remove it and run again"):
            stage.marker("000000")


def test_an_output_that_is_gone_is_named(stage: StageFolder) -> None:
    made = commit_file(stage, "000000", DATA)
    (folder(stage) / "000000.bin").unlink()
    with pytest.raises(ShardError, match=r"000000\.bin is missing although its marker 000000\.done\.json stands"):
        stage.settle(made)


def test_a_changed_config_is_refused_and_the_difference_named(stage: StageFolder) -> None:
    config = {"mapping": {"epsilon": 0.2, "grid": [3, 3]}, "seed": 0}
    bound = stage.claim(config)
    assert stage.claim(dict(reversed(config.items()))) == bound
    commit_file(stage, "000000", DATA)
    with pytest.raises(StaleStageError) as error:
        stage.claim({"mapping": {"epsilon": 0.3, "grid": (3, 3)}, "seed": 0})
    text = str(error.value)
    assert "mapping.epsilon: 0.2 -> 0.3" in text
    assert "--force" in text
    assert str(folder(stage)) in text
    assert "seed" not in text.split("What differs")[1].split("Set `run`")[0]
    assert "grid" not in text, "a tuple and a list are the same JSON"
    assert stage.claim(config) == bound, "a refused claim changes nothing"


def test_after_clear_another_config_may_claim(stage: StageFolder) -> None:
    stage.claim({"a": 1})
    commit_file(stage, "000000", DATA)
    stage.clear()
    assert stage.shards_done() == []
    assert files_below(folder(stage)) == []
    stage.claim({"a": 2})


def test_a_worker_whose_stage_was_cleared_commits_nothing(stage: StageFolder) -> None:
    """A worker that was cut off and comes back after --force must not leave a marker without an output."""
    with pytest.raises(ShardError, match="000000"), stage.attempt("000000") as attempt:
        attempt.write("000000.bin", DATA)
        StageFolder(stage.dataset_url, "base").clear()
        attempt.commit(lambda outputs: marker("000000", outputs))
    assert stage.shards_done() == []
    commit_file(stage, "000000", DATA)
    assert committed(stage) == DATA


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null"])
def test_a_damaged_claim_is_named(stage: StageFolder, damage: bytes) -> None:
    stage.claim({"a": 1})
    (folder(stage) / "config.json").write_bytes(damage)
    with pytest.raises(VillaError, match=r"config\.json"):
        stage.claim({"a": 1})


class Failing:
    """Lets the n-th of all calls to some functions of `os` fail."""

    NAMES = ("fsync", "link", "replace", "mkdir", "open")

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: BaseException, below: str) -> None:
        self.count, self.at, self.error, self.below = 0, at, error, below
        for name in self.NAMES:
            patch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if isinstance(args[0], int) or self.below in str(args[0]):
                self.count += 1
                if self.count == self.at:
                    raise self.error
            return call(*args, **kwargs)

        return wrapped


def failing_commits(tmp_path: Path, error: BaseException) -> Iterator[tuple[int, StageFolder, BaseException]]:
    """One commit for every call that can fail, with the exception that came of it."""
    for at in range(1, 100):
        stage = StageFolder(str(tmp_path / str(at)), "base")
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, error, str(tmp_path))
            try:
                with stage.attempt("000000") as attempt:
                    attempt.write("000000.bin", DATA)
                    attempt.write("quarantine/000000.bin", DATA)
                    attempt.commit(lambda outputs: marker("000000", outputs))
                raised: BaseException | None = None
            except BaseException as caught:
                raised = caught
        if failing.count < at:
            assert at > 8
            return
        if raised is not None:
            yield at, stage, raised


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_device_is_a_storage_error_that_names_the_place(tmp_path: Path) -> None:
    for at, stage, raised in failing_commits(tmp_path, NO_SPACE):
        assert isinstance(raised, StorageFullError), f"call {at}: {raised!r}"
        assert stage.store.path() in str(raised)
        assert "no space left" in str(raised)


@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt(), OSError(errno.EIO, "input/output error")])
def test_a_failure_at_any_call_leaves_all_or_nothing(tmp_path: Path, error: BaseException) -> None:
    """A failure behind the marker must not take away what the marker promises."""
    for at, stage, _ in failing_commits(tmp_path, error):
        if stage.shards_done():
            assert all(stage.store.exists(stage.locate(o)) for o in stage.marker("000000").outputs), f"call {at}"
            assert committed(stage) == DATA
        else:
            assert files_below(folder(stage)) == [], f"call {at}"
        commit_file(stage, "000000", DATA)
        stage.settle_all()
        assert committed(stage) == DATA


def test_writing_beyond_the_space_is_a_storage_error(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageFullError, match=r"no space left .*000000\.bin"), stage.attempt("000000") as attempt:
        file = attempt.open("000000.bin")

        class Full:
            closed = False

            def write(self, data: bytes) -> int:
                raise NO_SPACE

            flush = fileno = close = lambda self: None

        file._file.close()
        monkeypatch.setattr(file, "_file", Full())
        file.write(DATA)
    assert files_below(folder(stage)) == []


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A real device of 64 KiB, where this user may mount one."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no permission to mount a small tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_device_that_is_really_full(small_device: Path) -> None:
    stage = StageFolder(str(small_device / "run"), "base")
    commit_file(stage, "000000", b"x" * 8192)
    with pytest.raises(StorageFullError, match=r"no space left .*000001"):
        commit_file(stage, "000001", b"y" * 200_000)
    assert files_below(folder(stage)) == ["000000.bin", "000000.done.json"]
    assert committed(stage) == b"x" * 8192
    commit_file(stage, "000001", b"y" * 8192)
    assert committed(stage, "000001") == b"y" * 8192


def test_a_place_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(VillaError, match=r"cannot write .*run.*Permission denied"):
        commit_file(StageFolder(str(tmp_path / "run"), "base"), "000000", DATA)


def test_a_committed_shard_is_read_before_it_is_moved_into_place(
    stage: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies between commit and move leaves a shard that readers find."""
    kept = []
    monkeypatch.setattr(StageFolder, "settle", lambda self, marker: kept.append(marker))
    monkeypatch.setattr("shards.commit._remove_tree", lambda folder: None)
    commit_base(stage, "000000", PLAIN)
    assert not (folder(stage) / "000000.tar").exists()
    assert list(BaseShard(stage, "000000").samples()) == PLAIN
    monkeypatch.undo()
    stage.settle_all()
    assert (folder(stage) / "000000.tar").exists()
    assert list(BaseShard(stage, "000000").samples()) == PLAIN


def test_markers_are_json_that_people_read(stage: StageFolder) -> None:
    commit_file(stage, "000000", DATA)
    found = json.loads((folder(stage) / "000000.done.json").read_text())
    assert found["shard"] == "000000"
    assert found["outputs"][0]["sha256"] == hashlib.sha256(DATA).hexdigest()


def test_a_late_worker_of_another_config_commits_nothing(stage: StageFolder) -> None:
    stage.claim({"a": 2})
    with pytest.raises(StaleStageError, match="000000"), stage.attempt("000000") as attempt:
        attempt.write("000000.bin", DATA)
        attempt.commit(lambda outputs: marker("000000", outputs, bound="an earlier config"))
    assert stage.shards_done() == []


def test_an_attempt_opens_while_another_worker_removes_the_empty_folder_above_it(stage: StageFolder) -> None:
    above, over, removed = folder(stage) / ".attempts", threading.Event(), 0

    def tidy() -> None:
        nonlocal removed
        while not over.is_set():
            try:
                above.rmdir()
                removed += 1
            except OSError:
                pass
            time.sleep(1e-5)

    tidier = threading.Thread(target=tidy)
    tidier.start()
    try:
        for _ in range(2000):
            with stage.attempt("000000"):
                pass
    finally:
        over.set()
        tidier.join()
    assert removed > 5, "the race was never run"


def test_an_attempt_opens_where_a_folder_above_goes_between_two_looks(
    stage: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was missing, then another had made it, and then it was gone again: what mkdir calls "exists" and does not."""
    above, mkdir, is_dir, seen = folder(stage) / ".attempts", os.mkdir, Path.is_dir, []
    above.mkdir(parents=True)

    def missing_at_first(path: Any, mode: int = 0o777) -> None:
        seen.append("mkdir")
        if len(seen) == 1:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        mkdir(path, mode)

    def gone_by_now(path: Path) -> bool:
        if path == above and "gone" not in seen:
            seen.append("gone")
            above.rmdir()
        return is_dir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", missing_at_first)
        patched.setattr(Path, "is_dir", gone_by_now)
        attempt = stage.attempt("000000").__enter__()
    assert "gone" in seen
    attempt.write("000000.bin", DATA)
    attempt.__exit__(None, None, None)


def test_an_attempt_over_a_file_says_which_and_what_to_do(stage: StageFolder) -> None:
    folder(stage).mkdir()
    (folder(stage) / ".attempts").write_bytes(b"")
    with pytest.raises(VillaError, match=r"cannot write .*base/\.attempts.*set `run` to another folder"):
        stage.attempt("000000").__enter__()
