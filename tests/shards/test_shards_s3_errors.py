"""What a store on S3 says when it cannot be used: the value, the place and what to do."""

from __future__ import annotations

import os
import pickle
import time

import pytest
from faults.s3 import S3

from shards.errors import StorageFullError, VillaError
from shards.retry import GaveUp
from shards.store import Store


@pytest.fixture
def remote(s3: S3) -> Store:
    return Store(s3.url("run"))


def test_a_bucket_that_is_not_there_is_named(s3: S3) -> None:
    store = Store("s3://no-such-bucket/run")
    for action in (lambda: store.read("a"), store.list, store.exists, lambda: store.put("a", b"")):
        with pytest.raises(
            VillaError, match=r"no bucket 'no-such-bucket' at http.*s3://no-such-bucket/.*AWS_ENDPOINT_URL"
        ):
            action()


def test_credentials_that_are_not_there_are_asked_for(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(VillaError, match=r"no usable AWS credentials to read s3://.*/run/a .*AWS_ACCESS_KEY_ID"):
        Store(s3.url("run")).read("a")
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    _forget()
    with pytest.raises(VillaError, match=r"no usable AWS credentials .*not-there.*AWS_PROFILE"):
        Store(s3.url("run")).read("a")


def _forget() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("status", "code", "headers", "words"),
    [
        (403, "AccessDenied", "", r"may not read s3://.*/run/a .*s3:GetObject.*s3:ListBucket"),
        (403, "SignatureDoesNotMatch", "", r"credentials were refused.*AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", "", r"credentials were refused"),
        (400, "ExpiredToken", "", r"credentials were refused.*AWS_SESSION_TOKEN"),
        (403, "RequestTimeTooSkewed", "", r"clock"),
        (
            400,
            "AuthorizationHeaderMalformed",
            "x-amz-bucket-region: eu-west-3",
            r"region.*AWS_DEFAULT_REGION=eu-west-3",
        ),
        (301, "PermanentRedirect", "x-amz-bucket-region: eu-west-3", r"region.*AWS_DEFAULT_REGION=eu-west-3"),
        (400, "InvalidRequest", "", r"cannot read s3://.*/run/a at http.*InvalidRequest"),
        (507, "InsufficientStorage", "", r"no space left"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_repeated(
    s3: S3, remote: Store, status: int, code: str, headers: str, words: str
) -> None:
    s3.fail("status", "", "run/a", times=1000, status=status, code=code, headers=headers)
    with pytest.raises(VillaError, match=words) as caught:
        remote.read("a")
    assert not isinstance(caught.value, GaveUp)
    assert s3.proxy.count("GET", "run/a") <= 2  # botocore asks again itself where a region is named
    assert isinstance(caught.value, StorageFullError) == (status == 507)
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None


def test_an_address_where_nobody_answers_is_named_soon(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:canary-password@127.0.0.1:9")
    _forget()
    began = time.monotonic()
    with pytest.raises(
        VillaError, match=r"nothing has answered at http://127\.0\.0\.1:9 yet; check AWS_ENDPOINT_URL"
    ) as e:
        Store(s3.url("run")).read("a")
    assert time.monotonic() - began < 20 and "canary" not in str(e.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not an address")
    _forget()
    with pytest.raises(VillaError, match="Invalid endpoint"):
        Store(s3.url("run")).read("a")


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///run",
        "gs://bucket/run",
        "http://host/run",
        "s3://bucket//run",
        "s3://bucket/../run",
        "memory://x",
    ],
)
def test_places_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(VillaError, match="s3://bucket/prefix"):
        Store(url)


@pytest.mark.parametrize(
    "url", ["s3://AKIA:canary@bucket/run", "s3://AKIA:canary/slash@bucket", "gs://canary@bucket/x"]
)
def test_credentials_in_a_path_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(VillaError, match="holds a user or password") as caught:
        Store(url)
    assert "canary" not in str(caught.value)


def test_the_secret_shows_nowhere(s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    store = Store(s3.url("run"))
    told = []
    with caplog.at_level("DEBUG"):
        store.put("a", b"1")
        for status, code in (
            (403, "SignatureDoesNotMatch"),
            (403, "AccessDenied"),
            (503, "SlowDown"),
            (400, "InvalidRequest"),
        ):
            s3.proxy.clear()
            s3.fail("status", "GET", times=1000, status=status, code=code)
            with pytest.raises(VillaError) as caught:
                store.read("a")
            told += [str(caught.value), repr(caught.value), repr(pickle.dumps(caught.value))]
    told += [repr(store), repr(pickle.dumps(store)), repr(vars(store)), repr(vars(store.objects.session))]
    told += [store.fs.to_json(), repr(store.fs.storage_options), repr(pickle.dumps(store.fs)), caplog.text]
    assert [line[:300] for text in told for line in text.splitlines() if secret in line] == []
    assert len(caplog.text) > 1000
    assert Store.__reduce__(store)[1] == (s3.url("run"),)
    assert pickle.loads(pickle.dumps(store)).exists("a")
