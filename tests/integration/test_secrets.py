"""Secrets of the environment are in nothing that villa writes: storage, logs, results, tracebacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.s3 import S3
from runs import TINY, config_file, result_line, sets, villa

from shards.retry import scrub

CANARIES = {
    "AWS_ACCESS_KEY_ID": "CANARYKEYID00000AKIA",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+access0key0that0sings",
    "AWS_SESSION_TOKEN": "canary-session-token-that-sings",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "canary-ray-token-0123456789abcdef0123456789abcdef",
    "HF_TOKEN": "canary-hub-token-that-sings",
}
SONG = [value for name, value in CANARIES.items() if name != "RAY_AUTH_MODE"]


def heard(text: bytes) -> list[str]:
    return [name for name, value in CANARIES.items() if value in SONG and value.encode() in text]


def in_files(*folders: Path) -> Iterator[str]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and (found := heard(path.read_bytes())):
                yield f"{path}: {found}"


def test_of_a_stage_on_an_object_store(s3: S3, tmp_path: Path) -> None:
    done = villa("ingest", config_file(tmp_path), *sets(f"run={s3.url('run')}", *TINY), env=CANARIES)
    result_line(done)
    written = [name for name in s3.names() if not name.endswith(".tar")]
    assert any("done.json" in name for name in written) and any(".lease/" in name for name in written)
    told = [f"{name}: {found}" for name in s3.names() if (found := heard(s3.get(name)))]
    assert told + heard((done.stdout + done.stderr).encode()) == []


BROKEN = """
import os, sys
from cluster import cli
from villa_dist.observe import LOG
def broken(*_):
    LOG.error("with %s", os.environ["HF_TOKEN"])
    raise RuntimeError("a library that tells " + os.environ["AWS_SECRET_ACCESS_KEY"] + os.environ["RAY_AUTH_TOKEN"])
cli.load = broken
sys.argv = ["villa", "ingest", "x.yaml"]
cli.main()
"""


def test_of_a_traceback_and_a_log_line(tmp_path: Path) -> None:
    import subprocess

    root = str(Path(__file__).parents[2])
    env = {**os.environ, **CANARIES, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, env=env, timeout=120)
    assert (
        done.returncode == 1
        and b"Traceback" in done.stderr
        and b"<AWS_SECRET_ACCESS_KEY><RAY_AUTH_TOKEN>" in done.stderr
    )
    assert b"with <HF_TOKEN>" in done.stderr and heard(done.stdout + done.stderr) == []


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abc")  # too short to be one
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/etc/villa/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("DB_PASSWORD", "hunter2hunter2")
    said = "abc /etc/villa/token false hunter2hunter2 https://me:pw@host/x?X-Amz-Signature=abcdef&b=1"
    assert scrub(said) == "abc /etc/villa/token false <DB_PASSWORD> https://host/x?X-Amz-Signature=<removed>&b=1"


@pytest.mark.slow
def test_of_a_whole_run(tmp_path: Path) -> None:
    done = villa("run", config_file(tmp_path), *sets(f"run={tmp_path}/run", *TINY), env=CANARIES)
    result_line(done)
    assert (tmp_path / "run" / "report.html").is_file() and list((tmp_path / "run").rglob("train.log"))
    assert heard((done.stdout + done.stderr).encode()) == []
    assert list(in_files(tmp_path / "run")) == []
