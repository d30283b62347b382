"""Fixtures: an S3 server on this host for the whole test session, and for each test a bucket behind a proxy."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from faults.proxy import Fault, Kind, Proxy

SECRET = "canary0secret0do0not0tell"
CLEARED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3", "VILLA_S3_RETRY_SECONDS")


@dataclass(frozen=True)
class S3:
    """A bucket. `client` speaks to the server directly, past the proxy that the code under test goes through."""

    bucket: str
    proxy: Proxy
    client: Any

    def url(self, name: str = "") -> str:
        return f"s3://{self.bucket}/{name}".rstrip("/")

    def names(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(o["Key"] for page in pages for o in page.get("Contents", ()))

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def uploads(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [u["Key"] for u in found.get("Uploads", ())]

    def fail(self, kind: Kind, method: str = "", target: str = "", **more: Any) -> Fault:
        fault = Fault(kind, method, target, **more)
        self.proxy.faults.append(fault)
        return fault


def environment(endpoint: str) -> dict[str, str]:
    """What a process needs to reach the server, and no credentials of whoever runs the tests."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def serve(ip_address: str = "127.0.0.1") -> tuple[tuple[str, int], Any, Any]:
    """(address, client, server) of a server that is up."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address=ip_address, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="tester",
        aws_secret_access_key="other",
        region_name="us-east-1",
    )
    return (host, port), client, server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[tuple[tuple[str, int], Any]]:
    """(address, client) of the server; ended with the session."""
    address, client, server = serve()
    yield address, client
    client.close()
    server.stop()


@pytest.fixture
def s3(moto_server: tuple[tuple[str, int], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A fresh bucket; retries wait for milliseconds."""
    import s3fs

    import shards.objects
    from shards import session
    from shards.retry import Budget

    address, client = moto_server
    proxy = Proxy(address).start()
    for name, value in environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    quick = Budget(tries=8, seconds=10.0, unreachable=3.0, first=0.002, longest=0.02)
    monkeypatch.setattr(shards.objects, "default_budget", lambda: quick)
    monkeypatch.setattr(session, "_reached", set())
    s3fs.S3FileSystem.clear_instance_cache()  # sessions keep the endpoint that they were made with
    bucket = f"b{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    yield S3(bucket, proxy, client)
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()
