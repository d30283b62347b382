"""No cluster on a network is used without a token, and what is wrong with a token is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import auth
from cluster.session import RaySession
from shards.errors import VillaError
from villa_dist.config import RayConfig


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (auth.MODE, auth.TOKEN, auth.TOKEN_PATH, auth.INSECURE, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(auth.MODE, "")  # so that what is set in a test is taken back
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head:6379", "ray://10.0.0.1:10001", "http://head:8265", "auto"])
def test_an_address_on_a_network_needs_a_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VillaError, match=r"refusing .* without a token.*RAY_AUTH_MODE=token.*--way-out"):
        auth.require_token(address, insecure=False, how="--way-out")
    auth.require_token(address, insecure=True, how="")
    monkeypatch.setenv(auth.TOKEN, "x" * 32)
    auth.require_token(address, insecure=False, how="")
    assert os.environ[auth.MODE] == "token"  # Ray would not send it otherwise


def test_the_mode_disabled_is_no_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auth.MODE, "disabled")
    monkeypatch.setenv(auth.TOKEN, "x" * 32)
    with pytest.raises(VillaError, match="refusing"):
        auth.require_token("10.0.0.1:6379", insecure=False, how="")
    monkeypatch.setenv(auth.INSECURE, "1")
    auth.require_token("10.0.0.1:6379", insecure=False, how="")
    assert os.environ[auth.MODE] == "disabled"


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "http://localhost:8265", "[::1]:6379", "http://[::1]:8265"])
def test_the_loopback_does_not_need_one(address: str) -> None:
    auth.require_token(address, insecure=False, how="")


def test_a_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert auth.token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert auth.token() == "of-home"
    (tmp_path / "file").write_text("of-file")
    monkeypatch.setenv(auth.TOKEN_PATH, str(tmp_path / "file"))
    assert auth.token() == "of-file"
    monkeypatch.setenv(auth.TOKEN, "of-variable")
    assert auth.token() == "of-variable"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_token_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    monkeypatch.setenv(auth.TOKEN_PATH, str(tmp_path / "file"))
    with pytest.raises(VillaError, match=str(tmp_path / "file")):
        auth.token()


def test_a_mode_without_a_token_and_a_mode_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auth.MODE, "token")
    with pytest.raises(VillaError, match=r"there is no token for the Ray cluster at 127\.0\.0\.1:1"):
        auth.require_token("127.0.0.1:1", insecure=True, how="")
    monkeypatch.setenv(auth.MODE, "tokens")
    with pytest.raises(VillaError, match="'tokens' is not a mode"):
        auth.require_token("127.0.0.1:1", insecure=True, how="")


def test_a_session_refuses_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.session.unreachable", lambda address: "")
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("it connected"))
    with pytest.raises(VillaError, match=r"ray\.insecure_no_token=true"):
        RaySession(RayConfig(address="10.0.0.1:6379")).__enter__()
