"""A store on S3: the same as a local folder, through a network that fails."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Fault, Kind
from faults.s3 import S3
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import shards.objects
from shards.errors import ShardError, StorageFullError, VillaError
from shards.retry import Budget, GaveUp
from shards.store import Store

FAULTS: list[Kind] = ["status", "cut_request", "lose_response", "cut_response", "short_response", "delay"]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """One folder of each kind; what holds for one holds for the other."""
    if request.param == "local":
        return Store(str(tmp_path / "folder"))
    return Store(request.getfixturevalue("s3").url("some/folder"))


@pytest.fixture
def remote(s3: S3) -> Store:
    return Store(s3.url("run"))


# ---- the same as a local folder


def test_files_come_back_as_they_went(store: Store, tmp_path: Path) -> None:
    assert not store.exists() and store.list() == [] and store.folders() == []
    assert store.find("a.bin") is None and store.find_size("a.bin") is None and not store.is_file("a.bin")
    store.put("a.bin", b"one")
    store.put("a.bin", b"three")
    store.put("sub/b.bin", b"")
    (tmp_path / "made").write_bytes(b"made" * 1000)
    store.upload(str(tmp_path / "made"), "sub/c.txt")
    assert store.read("a.bin") == store.find("a.bin") == b"three"
    assert store.read("sub/b.bin") == b"" and store.read("sub/c.txt") == b"made" * 1000
    assert store.exists() and store.exists("sub") and store.exists("a.bin") and not store.exists("sub/b")
    assert store.is_file("a.bin") and not store.is_file("sub")
    assert store.list_sizes() == {"a.bin": 5} and store.folders() == ["sub"]
    assert store.list("sub", ".bin") == ["b.bin"] and store.list_sizes("sub") == {"b.bin": 0, "c.txt": 4000}
    assert store.read_range("a.bin", 1, 3) == b"hre" and store.read_range("a.bin", 3, 99) == b"ee"
    assert b"".join(store.blocks("sub/c.txt", 4000, block=7)) == b"made" * 1000
    with store.open("sub/c.txt") as file:
        file.seek(2)
        assert file.read(4) == b"dema"
    store.rename("sub/c.txt", "d.txt", 4000)
    assert store.list() == ["a.bin", "d.txt"] and store.list("sub") == ["b.bin"]
    store.remove("d.txt")
    store.remove("d.txt")
    store.remove("sub", recursive=True)
    store.remove("nowhere", recursive=True)
    assert store.list() == ["a.bin"] and store.folders() == []


def test_what_is_missing_is_named(store: Store) -> None:
    with pytest.raises(ShardError, match=r"folder/a\.bin does not exist"):
        store.read("a.bin")
    for action in (store.size, store.open, lambda name: list(store.blocks(name)), lambda n: store.rename(n, "b", 1)):
        with pytest.raises(FileNotFoundError):
            action("a.bin")


def test_a_file_is_created_once(store: Store) -> None:
    assert store.put_if_absent("a", b"first")
    assert not store.put_if_absent("a", b"first")
    assert not store.put_if_absent("a", b"second")
    assert store.read("a") == b"first"


def test_odd_names_are_kept(store: Store) -> None:
    names = ["a b.txt", "ä+%20&=.txt", "x#y?.txt", "写真.txt"]
    for name in names:
        store.put(f"odd/{name}", name.encode())
    assert store.list("odd") == sorted(names)
    assert [store.read(f"odd/{n}").decode() for n in names] == names


def test_ranges_are_slices(store: Store) -> None:
    choose = random.Random(0)
    data = choose.randbytes(5_000_000)
    store.put("big", data)
    for _ in range(5):
        ranges = [(at := choose.randrange(len(data)), choose.randrange(min(70_000, len(data) - at))) for _ in range(12)]
        assert store.read_ranges("big", ranges) == [data[o : o + n] for o, n in ranges]
    with pytest.raises(ShardError, match="ends inside a range"):
        store.read_ranges("big", [(len(data) - 5, 10)])
    assert store.read_ranges("big", []) == []


def test_neighbouring_ranges_are_one_request(remote: Store, s3: S3) -> None:
    remote.put("big", bytes(1_000_000))
    s3.proxy.clear()
    remote.read_ranges("big", [(n * 10_000, 9_000) for n in range(50)])
    assert s3.proxy.count() == 1


# ---- listings


def fill(s3: S3, prefix: str, count: int) -> list[str]:
    """Objects made behind the server's back, which is quick."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    names = [f"{n:06d}.tar" for n in range(count)]
    for name in names:
        backend.put_object(s3.bucket, prefix + name, b"x" * 3)
    return names


def test_long_listings_come_whole_though_a_page_fails(s3: S3, remote: Store) -> None:
    names = fill(s3, "run/", 1205)
    s3.fail("status", "GET", "continuation-token", times=1)
    s3.fail("cut_response", "GET", "list-type", skip=1)
    assert remote.list("", ".tar") == names
    s3.proxy.clear()
    assert remote.list_sizes("", ".tar") == dict.fromkeys(names, 3)
    assert s3.proxy.count() == 2 and s3.proxy.count("HEAD") == 0
    remote.remove("", recursive=True)
    assert s3.names() == []


def test_listings_are_never_old(s3: S3, remote: Store) -> None:
    assert not remote.exists("a") and remote.list() == []
    s3.put("run/a", b"1")
    assert remote.exists("a") and remote.list() == ["a"]
    s3.client.delete_object(Bucket=s3.bucket, Key="run/a")
    assert not remote.exists("a") and remote.list() == [] and remote.find("a") is None


def test_objects_that_are_not_removed_are_tried_again_or_named(s3: S3, remote: Store) -> None:
    for name in "abc":
        remote.put(name, b"1")
    real, said = remote.objects.session.fs._call_s3, [{"Key": "run/b", "Code": "InternalError", "Message": "again"}]

    async def partly(method: str, **kwargs: Any) -> Any:
        answer = await real(method, **kwargs)
        return {"Errors": [said.pop()]} if method == "delete_objects" and said else answer

    remote.objects.session.fs._call_s3 = partly
    remote.remove_files(["a", "b", "c"])
    assert s3.names() == [] and not said
    said.append({"Key": "run/b", "Code": "AccessDenied", "Message": "no"})
    with pytest.raises(VillaError, match="may not remove"):
        remote.remove_files(["a", "b"])


def test_a_whole_bucket_is_not_emptied(s3: S3) -> None:
    s3.put("precious", b"1")
    with pytest.raises(VillaError, match="whole bucket"):
        Store(s3.url()).remove("", recursive=True)
    assert s3.names() == ["precious"]


# ---- a network that fails


@pytest.mark.parametrize("kind", FAULTS)
def test_reads_give_the_right_bytes_under_every_fault(s3: S3, remote: Store, kind: Kind) -> None:
    data = random.Random(1).randbytes(300_000)
    s3.put("run/big", data)
    s3.fail(kind, "GET", "big", times=3, skip=1, seconds=0.05)
    assert b"".join(remote.blocks("big", len(data), block=40_000)) == data
    s3.fail(kind, "GET", "big", times=2, skip=s3.proxy.faults[0].met, seconds=0.05)
    assert remote.read("big") == data
    with remote.open("big") as file:
        assert file.read() == data
    assert remote.read_ranges("big", [(5, 10), (299_990, 10)]) == [data[5:15], data[-10:]]


@pytest.mark.parametrize("kind", ["cut_response", "short_response"])
def test_reads_that_never_come_whole_are_errors(s3: S3, remote: Store, kind: Kind) -> None:
    s3.put("run/big", bytes(100_000))
    s3.fail(kind, "GET", "big", times=1000, keep=99_000)
    for read in (remote.read, lambda name: remote.read_range(name, 0, 100_000), remote.open):
        with pytest.raises(
            GaveUp,
            match=rf"get_object s3://{s3.bucket}/run/big failed 8 times.*(came of|not enough data|ayload|hecksum)",
        ):
            read("big")


def test_a_file_of_another_size_or_replaced_meanwhile_is_an_error(s3: S3, remote: Store) -> None:
    s3.put("run/big", bytes(1000))
    with pytest.raises(ShardError, match=r"has 1000 bytes, 1001 were recorded"):
        list(remote.blocks("big", 1001))
    blocks = remote.blocks("big", 1000, block=100, ahead=1)
    next(blocks)
    s3.put("run/big", bytes([1]) * 1000)
    with pytest.raises(ShardError, match="was replaced while it was read"):
        list(blocks)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_file_is_created_once_under_every_fault(s3: S3, remote: Store, kind: Kind) -> None:
    for number, times in enumerate((1, 2, 5)):
        fault = s3.fail(kind, "PUT", f"m{number}$", times=times, seconds=0.02)
        assert remote.put_if_absent(f"m{number}", b"mine") is True
        assert fault.met >= (1 if kind in ("delay", "cut_response", "short_response") else times)
        assert remote.put_if_absent(f"m{number}", b"mine") is False, "equal content is not the same writer"
        assert s3.get(f"run/m{number}") == b"mine"


def test_a_lost_answer_is_not_another_winner(s3: S3, remote: Store) -> None:
    """The server did it, the client did not hear of it, and asks again: refused, and yet ours."""
    fault = s3.fail("lose_response", "PUT", "marker")
    assert remote.put_if_absent("marker", b"mine") is True
    assert fault.met == 2 and s3.proxy.count("HEAD", "marker") == 1


def test_an_answer_that_never_comes_is_neither_yes_nor_no(s3: S3, remote: Store) -> None:
    s3.fail("lose_response", "PUT", "marker", times=1000)
    s3.fail("status", "HEAD", "marker", times=1000)
    with pytest.raises(GaveUp):
        remote.put_if_absent("marker", b"mine")
    assert s3.get("run/marker") == b"mine"  # a rerun finds it


def test_a_conflict_of_two_creations_is_tried_again(s3: S3, remote: Store) -> None:
    s3.fail("status", "PUT", "marker", status=409, code="ConditionalRequestConflict", times=2)
    assert remote.put_if_absent("marker", b"mine") is True


def test_what_is_removed_while_it_is_created_is_an_error(s3: S3, remote: Store) -> None:
    s3.fail("status", "PUT", "marker", status=412, code="PreconditionFailed")
    with pytest.raises(ShardError, match=r"marker was removed while it was created"):
        remote.put_if_absent("marker", b"mine")


def race(racers: int, action: Callable[[int], Any]) -> list[Any]:
    """What each of the threads returned, or raised."""
    barrier, results = threading.Barrier(racers), [None] * racers

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = action(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.mark.parametrize("racers", [2, 8])
def test_racing_creators_through_faults_have_one_winner(s3: S3, racers: int) -> None:
    choose = random.Random(racers)
    for number in range(6):
        name = f"claim{number}"
        for kind in choose.choices(["status", "lose_response", "cut_request", "delay", "lose_response"], k=5):
            s3.fail(kind, "PUT", name, times=1, skip=choose.randrange(racers + 2), seconds=0.01)
        won = race(racers, lambda n, name=name: Store(s3.url("run")).put_if_absent(name, b"%d" % n))
        assert sorted(map(str, won)) == ["False"] * (racers - 1) + ["True"], won
        assert s3.get(f"run/{name}") == b"%d" % won.index(True)


@given(st.lists(st.tuples(st.sampled_from(["lose_response", "cut_request", "status"]), st.integers(0, 4)), max_size=6))
@settings(max_examples=15, phases=[Phase.generate])
def test_of_two_creators_in_turn_one_wins_whatever_fails(
    faulty_s3: tuple[S3, Any], faults: list[tuple[Kind, int]]
) -> None:
    s3, count = faulty_s3
    name = f"turn{next(count)}"
    for kind, skip in faults:
        s3.proxy.faults.append(Fault(kind, "PUT", name, skip=skip))
    won = [Store(s3.url("run")).put_if_absent(name, data) for data in (b"one", b"two")]
    assert won == [True, False] and s3.get(f"run/{name}") == b"one"


@pytest.fixture
def faulty_s3(s3: S3) -> tuple[S3, Any]:
    return s3, itertools.count()


# ---- large files in parts


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of three parts of the smallest size that S3 takes."""
    monkeypatch.setattr(shards.objects, "PART", 5 << 20)
    monkeypatch.setattr(shards.objects, "COPY_PART", 5 << 20)
    path = tmp_path / "large"
    path.write_bytes(random.Random(2).randbytes((11 << 20) + 17))
    return path


@pytest.mark.parametrize("target", ["uploads", "partNumber=2", r"uploadId=[^&]*$"])
@pytest.mark.parametrize("kind", ["status", "cut_request", "lose_response"])
def test_large_files_come_whole_under_every_fault(s3: S3, remote: Store, parts: Path, kind: Kind, target: str) -> None:
    s3.fail(kind, "", target, times=2 if kind != "lose_response" else 1)
    remote.upload(str(parts), "large")
    assert s3.get("run/large") == parts.read_bytes()
    assert s3.proxy.count("POST", "uploadId") >= 1, "it was not sent in parts"


def test_large_files_are_copied_in_parts(s3: S3, remote: Store, parts: Path) -> None:
    s3.put("run/.attempts/a/large", parts.read_bytes())
    fault = s3.fail("lose_response", "POST", "uploadId", times=1)
    remote.rename(".attempts/a/large", "large", parts.stat().st_size)
    assert fault.met == 2 and s3.get("run/large") == parts.read_bytes() and s3.names() == ["run/large"]
    assert s3.uploads() == []


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_an_upload_that_fails_midway_leaves_nothing(
    s3: S3, remote: Store, parts: Path, error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is None:
        s3.fail("status", "PUT", "partNumber=2", status=403, times=1000)
    else:

        def interrupted(*args: object) -> None:
            raise error

        monkeypatch.setattr(shards.objects, "in_order", interrupted)
    with pytest.raises(VillaError if error is None else KeyboardInterrupt):
        remote.upload(str(parts), "large")
    assert s3.names() == [] and s3.uploads() == []


# ---- processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_store_works_on_in_a_forked_process(s3: S3, remote: Store) -> None:
    remote.put("a", b"parent")
    pid = os.fork()
    if pid == 0:
        try:
            remote.put("b", remote.read("a") + b" and child")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert remote.read("b") == b"parent and child"


def test_a_fetched_file_leaves_no_trace(s3: S3, remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    s3.put("run/big", bytes(50_000))
    file = remote.open("big")
    assert list(tmp_path.iterdir()) == [], "a killed process would leave it"
    file.close()
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("U", (), {"free": 49_999})())
    with pytest.raises(StorageFullError, match=r"run/big.*50000 bytes.*49999 free.*TMPDIR"):
        remote.open("big")


def test_the_default_budget_is_minutes_not_hours() -> None:
    budget = Budget()
    assert budget.seconds <= 300 and budget.unreachable <= 30 and budget.longest <= 20
