"""Pure parts of reading from an object store: joining ranges, working ahead, telling what may be tried again."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import VillaError
from shards.prefetch import in_order
from shards.ranges import Request, coalesce
from shards.retry import Budget, GaveUp, ShortRead, default_budget, endpoint, failure_of, retried, scrub

RANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 400)), max_size=40)


@given(RANGES, st.integers(0, 300), st.integers(1, 2000))
def test_requests_cover_every_range_once_and_keep_to_gap_and_limit(
    ranges: list[tuple[int, int]], gap: int, limit: int
) -> None:
    requests = coalesce(ranges, gap, limit)
    assert sorted(i for r in requests for i in r.members) == list(range(len(ranges)))
    for request in requests:
        spans = [ranges[i] for i in request.members]
        assert request.offset == min(o for o, _ in spans)
        assert request.offset + request.length == max(o + n for o, n in spans)
        assert request.length <= limit or len({o for o, n in spans if n}) <= 1 or max(n for _, n in spans) > limit
        wanted = bytearray(request.length)
        for offset, length in spans:
            wanted[offset - request.offset : offset - request.offset + length] = b"\1" * length
        assert all(len(hole) <= gap for hole in bytes(wanted).split(b"\1")), "more than the gap is fetched in vain"


@given(RANGES, st.integers(0, 300), st.integers(1, 2000))
def test_neighbouring_requests_could_not_have_been_one(ranges: list[tuple[int, int]], gap: int, limit: int) -> None:
    requests = coalesce(ranges, gap, limit)
    assert requests == sorted(requests, key=lambda r: r.offset)
    for first, second in zip(requests, requests[1:], strict=False):
        head = ranges[second.members[0]]
        apart = second.offset - (first.offset + first.length)
        joined = max(first.offset + first.length, sum(head)) - first.offset
        assert apart > gap or joined > limit


def test_ranges_by_hand() -> None:
    assert coalesce([], 10, 100) == []
    assert coalesce([(20, 10), (0, 10), (35, 5), (100, 1)], 10, 100) == [
        Request(0, 40, (1, 0, 2)),
        Request(100, 1, (3,)),
    ]
    assert coalesce([(0, 500), (500, 500)], 10, 100) == [Request(0, 500, (0,)), Request(500, 500, (1,))]


def test_work_ahead_is_bounded_and_in_order() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def task(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number

    started = []

    def tasks() -> object:
        for n in range(30):
            started.append(n)
            yield lambda n=n: task(n)

    results = in_order(tasks(), 3)  # type: ignore[arg-type]
    assert next(results) == 0
    assert len(started) <= 4  # the one taken, and three ahead
    assert list(results) == list(range(1, 30))
    assert most <= 3


def test_work_ahead_ends_with_its_first_failure() -> None:
    def task(number: int) -> int:
        if number == 2:
            raise ShortRead("two")
        return number

    results = in_order(((lambda n=n: task(n)) for n in range(10)), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ShortRead):
        next(results)


class Answer(Exception):
    def __init__(self, code: str, status: int) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        *((Answer(str(s), s), True) for s in (408, 429, 500, 502, 503, 504)),
        *((Answer(c, 400), True) for c in ("RequestTimeout", "IncompleteBody", "BadDigest")),
        (Answer("SlowDown", 503), True),
        (Answer("InternalError", 200), True),  # copies fail behind an answer of 200
        (Answer("ConditionalRequestConflict", 409), True),
        *((Answer(str(s), s), False) for s in (301, 400, 403, 404, 412, 416)),
        (Answer("AccessDenied", 403), False),
        (ShortRead("x"), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (ValueError("a mistake in the program"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_may_be_tried_again(error: BaseException, transient: bool) -> None:
    assert failure_of(error).transient is transient


def test_a_budget_ends_in_an_error_that_says_what_and_how_often() -> None:
    tries = []

    def action() -> None:
        tries.append(1)
        raise Answer("SlowDown", 503)

    with pytest.raises(GaveUp, match=r"get s3://b/k failed 4 times, at last with SlowDown \(503\).*fewer workers"):
        retried(action, "get s3://b/k", Budget(tries=4, first=0.001, longest=0.002), reached=lambda: True)
    assert len(tries) == 4


def test_a_budget_is_bounded_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(GaveUp):
        retried(_slow_down, "get", Budget(tries=10**6, seconds=0.3, first=0.01, longest=0.05), reached=lambda: True)
    assert time.monotonic() - began < 1.0
    began = time.monotonic()
    with pytest.raises(GaveUp, match="nothing has answered"):
        retried(_slow_down, "get", Budget(tries=10**6, seconds=60, unreachable=0.1), reached=lambda: False)
    assert time.monotonic() - began < 1.0


def _slow_down() -> None:
    raise Answer("SlowDown", 503)


def test_waits_differ_between_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    with pytest.raises(GaveUp):
        retried(_slow_down, "get", Budget(tries=12, seconds=1e6, first=0.2, longest=10.0), reached=lambda: True)
    assert len(waits) == len(set(waits)) == 11
    assert all(0 <= w <= min(10.0, 0.2 * 2**n) for n, w in enumerate(waits))


def test_the_time_limit_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILLA_S3_RETRY_SECONDS", "7.5")
    assert default_budget().seconds == 7.5
    for wrong in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("VILLA_S3_RETRY_SECONDS", wrong)
        with pytest.raises(VillaError, match=f"VILLA_S3_RETRY_SECONDS='{wrong}'"):
            default_budget()


def test_texts_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-token")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:canary-pass@minio:9000/x")
    text = scrub(
        "canary-secret, canary-token at https://user:canary-pass@minio:9000/x?X-Amz-Signature=canary-sig&a=1 and on"
    )
    assert "canary" not in text and "minio:9000" in text and "a=1" in text
    assert endpoint() == "https://minio:9000/x"
