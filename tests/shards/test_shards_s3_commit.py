"""Commits on S3: exactly one output a shard, whatever fails or dies between a worker and the storage."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Kind
from faults.s3 import S3
from shard_samples import NON_ASCII, PLAIN, commit_base, marker, written

import shards.session
from shards import manifest
from shards.commit import Marker, StageFolder
from shards.errors import ShardError, StaleStageError, StorageFullError, VillaError
from shards.reader import BaseShard, read_sidecar, scan_tar
from shards.store import Store
from shards.tar import Scan

DATA = b"0123456789" * 3000
FILES = {"000000.bin": DATA, "quarantine/000000.bin": b"refused"}
DONE = ["run/base/000000.bin", "run/base/000000.done.json", "run/base/quarantine/000000.bin"]
CLAIM = {"epsilon": 0.2}


@pytest.fixture
def stage(s3: S3) -> StageFolder:
    return StageFolder(s3.url("run"), "base")


def work(stage: StageFolder, files: dict[str, bytes] = FILES) -> Marker:
    """What a worker does with one shard."""
    with stage.attempt("000000") as attempt:
        for name, data in files.items():
            attempt.write(name, data)
        return attempt.commit(lambda outputs: marker("000000", outputs, bound=stage.bound_to() or "f"))


def assert_committed(stage: StageFolder, files: dict[str, bytes] = FILES) -> None:
    """The marker leads to the whole output."""
    outputs = stage.marker("000000").outputs
    assert sorted(o.file for o in outputs) == sorted(files)
    for output in outputs:
        data = stage.store.read(stage.locate(output))
        assert data == files[output.file] and hashlib.sha256(data).hexdigest() == output.sha256
    assert stage.damaged("000000", content=True) == ""


def test_a_commit_is_as_on_a_local_disk(stage: StageFolder, s3: S3) -> None:
    made = work(stage)
    assert s3.names() == DONE
    assert made == stage.marker("000000") == stage.find_marker("000000")
    assert stage.shards_done() == ["000000"] and stage.find_marker("000001") is None
    assert_committed(stage)
    assert work(stage, {"000000.bin": b"another"}) == made
    assert s3.names() == DONE and s3.get(DONE[0]) == DATA
    assert list(Path(tempfile.gettempdir()).glob(f"villa-attempt-*{made.outputs[0].attempt[-20:-11]}*")) == []


def test_a_commit_takes_few_requests(stage: StageFolder, s3: S3) -> None:
    bound = stage.claim(CLAIM)
    s3.proxy.clear()
    with stage.attempt("000000") as attempt:
        for name, data in FILES.items():
            attempt.write(name, data)
        attempt.commit(lambda outputs: marker("000000", outputs, bound=bound))
    assert s3.proxy.count() == 9  # two uploads, listing, claim, marker, two copies, two removals


def test_reading_a_shard_takes_few_requests(stage: StageFolder, s3: S3) -> None:
    commit_base(stage, "000000", PLAIN)
    s3.proxy.clear()
    base = BaseShard(stage, "000000")
    assert s3.proxy.count() == 3  # marker, size, index
    assert list(base.samples()) == PLAIN and s3.proxy.count() == 4
    assert base.batch([3, 0, 2]) == [PLAIN[i][1] for i in (3, 0, 2)] and s3.proxy.count() == 5
    assert base.sample(1) == PLAIN[1][1]


OTHERS = ["status", "cut_request", "cut_response", "short_response", "delay"]


@pytest.mark.parametrize("kind", ["lose_response", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)])
def test_a_commit_survives_each_fault_at_each_request(s3: S3, kind: Kind) -> None:
    """One fault, and three in a row, which one layer of retries must outlast."""
    for number in itertools.count():
        stage = StageFolder(s3.url(f"run{number}"), "base")
        s3.proxy.clear()
        fault = s3.fail(kind, skip=number, times=1 + 2 * (number % 2), seconds=0.01)
        stage.claim(CLAIM)
        work(stage)
        met = fault.met > number
        s3.proxy.clear()
        assert_committed(stage)
        expected = sorted(k.replace("run/", f"run{number}/") for k in [*DONE, "run/base/config.json"])
        assert s3.names(f"run{number}/") == expected
        if not met:
            assert number > 10
            return


@pytest.mark.parametrize("racers", [2, 8])
def test_racing_workers_through_faults_leave_one_output(s3: S3, racers: int) -> None:
    """Every racer writes other bytes, so that a marker of one with the output of another would show."""
    choose = random.Random(racers)
    for number in range(2):
        run = f"run{number}"
        for kind in choose.choices(["status", "lose_response", "cut_request", "delay"], k=6):
            s3.fail(kind, choose.choice(["PUT", ""]), run, skip=choose.randrange(8 * racers), seconds=0.02)
        s3.fail("lose_response", "PUT", rf"{run}.*done\.json", skip=choose.randrange(racers))
        barrier, results = threading.Barrier(racers), list[Any](range(racers))

        def racer(n: int, run: str = run, barrier: Any = barrier, results: list[Any] = results) -> None:
            barrier.wait()
            try:
                results[n] = work(StageFolder(s3.url(run), "base"), {"000000.bin": b"%d" % n * 20_000})
            except BaseException as error:
                results[n] = error

        threads = [threading.Thread(target=racer, args=(n,)) for n in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stage = StageFolder(s3.url(run), "base")
        assert results == [stage.marker("000000")] * racers, "all see the marker that stands"
        data = s3.get(f"{run}/base/000000.bin")
        assert len(set(data)) == 1 and hashlib.sha256(data).hexdigest() == results[0].outputs[0].sha256
        assert s3.names(f"{run}/") == [f"{run}/base/000000.bin", f"{run}/base/000000.done.json"]


# ---- failures that end a worker


@pytest.mark.parametrize("target", [r"\.bin", r"done\.json"])
def test_a_worker_that_may_not_write_leaves_nothing(stage: StageFolder, s3: S3, target: str) -> None:
    s3.fail("status", "PUT", target, status=403, times=1000)
    with pytest.raises(VillaError, match=r"may not (write|create) s3://"):
        work(stage)
    assert [k for k in s3.names() if ".attempts" not in k] == []
    s3.proxy.clear()
    work(stage)
    assert set(DONE) <= set(s3.names())
    assert_committed(stage)


@pytest.mark.parametrize("error", [ValueError("decoder"), KeyboardInterrupt()])
def test_an_exception_midway_leaves_nothing(stage: StageFolder, s3: S3, error: BaseException) -> None:
    def failing(outputs: object) -> Marker:
        raise error  # all is uploaded by now

    with pytest.raises(type(error)), stage.attempt("000000") as attempt:
        attempt.write("000000.bin", DATA)
        attempt.commit(failing)
    assert s3.names() == []
    assert list(Path(tempfile.gettempdir()).glob(f"villa-attempt-{attempt.name.rpartition('.')[2]}*")) == []


def test_a_marker_of_unknown_fate_keeps_what_it_may_promise(stage: StageFolder, s3: S3) -> None:
    s3.fail("lose_response", "PUT", r"done\.json", times=1000)
    s3.fail("status", "HEAD", r"done\.json", times=1000)
    with pytest.raises(VillaError, match="same command goes on from there"):
        work(stage)
    s3.proxy.clear()
    assert_committed(stage)  # it stands, and is read under the attempt's name
    assert DONE[0] not in s3.names()
    stage.settle_all()
    assert s3.names() == DONE


class Killed(BaseException):
    """From here on nothing of this process reaches the storage."""


class Killer:
    """Ends a worker before or after its request number `at`: no later request is sent."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.count, self.dead = at, 0, False
        self.real = shards.session.sync
        patch.setattr(shards.session, "sync", self)

    def point(self) -> None:
        self.count += 1
        self.dead = self.dead or self.count == self.at
        if self.dead:
            raise Killed

    def __call__(self, loop: Any, func: Callable[[], Any]) -> Any:
        self.point()
        answer = self.real(loop, func)
        self.point()
        return answer


def visit(run: str) -> None:
    """What a stage does: claim, finish what a crash left, then the missing shard."""
    stage = StageFolder(run, "base")
    stage.claim(CLAIM)
    stage.settle_all()
    if "000000" not in stage.shards_done():
        work(stage)


def killed(at: int, run: str) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, at)
        try:
            visit(run)
        except Killed:
            return True
    return False


def check_mended(s3: S3, run: str, now: float) -> None:
    """Whole before any recovery; after a rerun, and after a day, nothing is lost, doubled or left."""
    stage = StageFolder(s3.url(run), "base")
    if stage.shards_done():
        assert_committed(stage)
    visit(s3.url(run))
    assert_committed(stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 25 * 3600)
        stage.settle_all()
    expected = sorted(k.replace("run/", f"{run}/") for k in [*DONE, "run/base/config.json"])
    assert s3.names(f"{run}/") == expected


EVERY = [5, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("every", EVERY)
def test_a_worker_killed_at_any_request_is_mended_by_a_rerun(s3: S3, every: int) -> None:
    for at in itertools.count(1, every):
        if not killed(at, s3.url(f"run{at}")):
            assert at > 24
            return
        check_mended(s3, f"run{at}", time.time())


@pytest.mark.parametrize("every", EVERY)
def test_a_recovery_killed_at_any_request_is_mended_too(s3: S3, every: int) -> None:
    """The first is killed right after its marker, where recovery has most to do."""
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch, 0)
        visit(s3.url("counted"))
    last = killer.count - 2 * 2 * 2  # a copy and a removal of two files, two points each
    for at in itertools.count(1, every):
        run = f"run{at}"
        assert killed(last, s3.url(run))
        assert s3.names(f"{run}/base/000000.done") and not s3.names(f"{run}/base/000000.bin")
        if not killed(at, s3.url(run)):
            assert at > 12
            return
        check_mended(s3, run, time.time())


# ---- what is left, cleared, claimed


def test_what_a_dead_worker_left_is_collected_after_a_day(
    stage: StageFolder, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(stage)
    for name in ("000000.elsewhere-7.00ff00ff", "000009.elsewhere-7.00ff00aa"):
        s3.put(f"run/base/.attempts/{name}/000000.bin", b"orphan")
        s3.put(f"run/base/.attempts/{name}/quarantine/000000.bin", b"orphan")
    stage.settle_all()
    assert len(s3.names("run/base/.attempts/")) == 4, "they may be at work"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 23 * 3600)
    stage.settle_all()
    assert len(s3.names("run/base/.attempts/")) == 4
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    stage.settle_all()
    assert s3.names() == DONE


def test_local_files_of_a_killed_upload_are_collected(
    stage: StageFolder, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with stage.attempt("000000") as attempt:
        attempt.write("000000.bin", DATA)
        (mine,) = tmp_path.iterdir()
        assert mine.stat().st_mode & 0o777 == 0o700
        orphan = mine.with_name(mine.name.replace(mine.name.split("-")[-1], f"{2**22 + 1}.00ff00ff"))
        orphan.mkdir()
        (orphan / "000000.bin").write_bytes(DATA)
        stage.settle_all()
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []


def test_clearing_removes_all_and_stops_workers(stage: StageFolder, s3: S3) -> None:
    stage.claim(CLAIM)
    work(stage)
    s3.put("run/other/keep", b"1")
    gone = r"was cleared while it was worked on \(000001\.bin is gone\)"
    with pytest.raises(ShardError, match=gone), stage.attempt("000001") as attempt:
        attempt.write("000001.bin", DATA)

        def cleared_meanwhile(outputs: Any) -> Marker:
            stage.clear()
            return marker("000001", outputs)

        attempt.commit(cleared_meanwhile)
    assert s3.names() == ["run/other/keep"]


def test_an_upload_that_was_cut_by_another_is_not_committed(stage: StageFolder, s3: S3) -> None:
    with pytest.raises(ShardError, match=r"\(000000\.bin is gone\)"), stage.attempt("000000") as attempt:
        attempt.write("000000.bin", DATA)

        def damaged(outputs: Any) -> Marker:
            s3.put(f"run/base/{outputs[0].attempt}", DATA[:-1])
            return marker("000000", outputs)

        attempt.commit(damaged)
    assert s3.names() == []


def test_claims_bind_and_tell_differences(stage: StageFolder, s3: S3) -> None:
    bound = stage.claim(CLAIM)
    assert stage.claim(CLAIM) == stage.bound_to() == bound
    with pytest.raises(StaleStageError, match=r"epsilon: 0\.2 -> 0\.3"):
        stage.claim({"epsilon": 0.3})


def test_a_storage_that_creates_twice_is_refused(stage: StageFolder, s3: S3) -> None:
    s3.proxy.ignores_conditions = True
    with pytest.raises(VillaError, match=r"s3://.*/run/base creates an object twice.*If-None-Match"):
        stage.claim(CLAIM)


def test_damage_is_named(stage: StageFolder, s3: S3) -> None:
    work(stage)
    s3.put(DONE[0], DATA[:-1])
    assert "its marker says 30000" in stage.damaged("000000", content=False)
    s3.put(DONE[0], DATA[:-1] + b"!")
    assert stage.damaged("000000", content=False) == "" and "no longer has the content" in stage.damaged(
        "000000", content=True
    )
    s3.client.delete_object(Bucket=s3.bucket, Key=DONE[0])
    assert "is missing although its marker stands" in stage.damaged("000000", content=False)


# ---- reading


def test_a_shard_is_read_before_and_while_it_is_moved(stage: StageFolder, s3: S3) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageFolder, "settle", lambda self, marker: None)
        commit_base(stage, "000000", PLAIN)
    assert not s3.names("run/base/000000.tar")
    early = BaseShard(stage, "000000")
    assert list(early.samples()) == PLAIN
    s3.put("run/base/000000.tar", b"what an earlier commit left")
    assert list(BaseShard(stage, "000000").samples()) == PLAIN
    stage.settle_all()
    assert early.sample(2) == PLAIN[2][1] and list(early.samples()) == PLAIN
    assert list(BaseShard(stage, "000000").samples()) == PLAIN


@pytest.mark.parametrize("kind", ["cut_response", "short_response", "status"])
def test_shards_and_sidecars_are_whole_or_an_error(stage: StageFolder, s3: S3, kind: Kind) -> None:
    commit_base(stage, "000000", PLAIN)
    s3.fail(kind, "GET", "000000", times=3)
    s3.fail(kind, "GET", "000000", times=2, skip=6)
    assert list(BaseShard(stage, "000000").samples()) == PLAIN
    tar = s3.get("run/base/000000.tar")
    s3.put("run/base/000000.tar", tar[:600] + b"!" + tar[601:])
    with pytest.raises(ShardError, match="no longer has the content"):
        next(BaseShard(stage, "000000").samples())
    s3.put("run/base/000000.tar", tar[:-512])
    with pytest.raises(ShardError, match=r"its marker says"):
        BaseShard(stage, "000000")


def test_manifests_are_the_same_as_locally(stage: StageFolder, tmp_path: Path, s3: S3) -> None:
    import pyarrow as pa

    local = StageFolder(str(tmp_path), "base")
    for each in (local, stage):
        for n in range(3):
            commit_base(each, f"{n:06d}", PLAIN[n:])
    there, here = manifest.write(stage, stage.shards_done()), manifest.write(local, local.shards_done())
    assert there == here and s3.get("run/base/manifest.parquet") == (tmp_path / "base/manifest.parquet").read_bytes()
    with pytest.raises(ShardError, match="has not committed shard 000007"):
        read_sidecar(stage, "000007", pa.schema([]))


@pytest.mark.parametrize("samples", [PLAIN, NON_ASCII])
def test_foreign_tars_are_read_as_locally(s3: S3, tmp_path: Path, samples: Any) -> None:
    for name, data in (("whole.tar", written(samples)), ("cut.tar", written(samples)[:-1500]), ("empty.tar", b"")):
        (tmp_path / name).write_bytes(data)
        s3.put(f"in/{name}", data)
        s3.fail("cut_response", "GET", name)
        found = []
        for store in (Store(str(tmp_path)), Store(s3.url("in"))):
            scan = Scan()
            found.append(([(s.key, m) for s, m in scan_tar(store, name, scan)], scan))
        assert found[0] == found[1]


def test_a_foreign_tar_needs_no_more_than_its_own_space(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    s3.put("in/a.tar", written(PLAIN))
    samples = scan_tar(Store(s3.url("in")), "a.tar", Scan())
    next(samples)
    assert list(tmp_path.iterdir()) == []  # it has no name, so a killed process leaves nothing
    samples.close()
    with pytest.raises(ShardError, match=r"s3://.*/in/b\.tar was listed and is gone"):
        next(scan_tar(Store(s3.url("in")), "b.tar", Scan()))
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("U", (), {"free": 10})())
    with pytest.raises(StorageFullError, match="TMPDIR"):
        next(scan_tar(Store(s3.url("in")), "a.tar", Scan()))


@pytest.mark.slow
def test_webdataset_reads_the_final_name(stage: StageFolder, s3: S3) -> None:
    import webdataset as wds

    commit_base(stage, "000000", PLAIN)
    stream = io.BytesIO(s3.get("run/base/000000.tar"))
    source: Iterator[Any] = iter([{"url": "000000.tar", "stream": stream}])
    found = list(wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander(source)))
    assert [s["__key__"] for s in found] == [key for key, _ in PLAIN]
