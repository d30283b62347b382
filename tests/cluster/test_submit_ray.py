"""A real job server of one node: refused tokens, a job that is stopped and goes on, and the token in no file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from runs import TINY, sets

from villa_dist.revision import commit

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local_three_nodes.sh"
SMALL = [*TINY, "docmnist.budget={train: 600, validation: 100, test: 200}", "evaluate.ground_truth=false"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """The environment of a client of a cluster of one node."""
    folder = Path(tempfile.mkdtemp(prefix="vn-", dir="/tmp"))  # sockets below it must stay under 107 bytes
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env = {
        **kept,
        "PYTHON": sys.executable,
        "VILLA_NODES_DIR": str(folder / "n"),
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    try:
        up = subprocess.run([SCRIPT, "up", "1"], env=env, capture_output=True, text=True, timeout=300)
        assert up.returncode == 0, up.stderr[-3000:]
        told = dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
        yield {**env, **told}
    finally:
        subprocess.run([SCRIPT, "down"], env=env, timeout=60, check=True)
        assert not (folder / "n").exists()
        shutil.rmtree(folder)


def submit(env: dict[str, str], *arguments: str, timeout: float = 400.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", "submit", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (only,) = done.stdout.splitlines()
    return json.loads(only)


def test_a_job_is_checked_stopped_and_resumed(nodes: dict[str, str], tmp_path: Path) -> None:
    given = ["configs/quickstart.yaml", *sets(f"run={tmp_path}/run", *SMALL)]
    for change, told in ({"RAY_AUTH_TOKEN": "of another cluster"}, "refuses this token"), ({}, "asks for a token"):
        without = {k: v for k, v in nodes.items() if not k.startswith("RAY_AUTH")}
        mode = {"RAY_AUTH_MODE": "token"} if change else {}
        refused = submit({**without, **mode, **change}, *given)
        assert refused.returncode == 2 and told in refused.stderr and "RAY_AUTH_TOKEN_PATH" in refused.stderr, (
            refused.stderr
        )

    crowd = submit(nodes, *given, *sets("train.workers=16"))
    assert crowd.returncode == 2 and "training wants 16 workers and the cluster has 2 CPUs" in crowd.stderr
    assert not (tmp_path / "run" / "train").exists()

    begun = submit(nodes, *given, "--no-follow")
    assert begun.returncode == 0, begun.stderr[-3000:]
    first = line(begun)["submission"]
    stopped = submit(nodes, "--stop", first)
    assert stopped.returncode == 0 and line(stopped)["status"] == "STOPPED" and line(stopped)["missing"]
    asked = submit(nodes, "--status", first)
    assert asked.returncode == 1 and line(asked)["complete"] is False

    ended = submit(nodes, *given)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert line(ended)["complete"] is True and line(ended)["status"] == "SUCCEEDED"
    assert "report" in ended.stderr and "villa-probe" not in ended.stderr and "Traceback" not in ended.stderr
    results = tmp_path / "run" / "results.json"
    assert json.loads(results.read_text())["code"].get("commit") == commit(ROOT), "of the checkout that was sent"
    (tmp_path / "run" / "report.html").unlink()  # the data decide, not how the job ended
    results.write_text("[")
    asked = submit(nodes, "--status", line(ended)["submission"])
    assert asked.returncode == 1
    assert line(asked)["missing"] == ["evaluate (results.json)", "report (report.html)"], asked.stderr

    token = Path(nodes["RAY_AUTH_TOKEN_PATH"]).read_bytes()
    held = [p for top in (tmp_path, Path(nodes["VILLA_NODES_DIR"])) for p in top.rglob("*") if p.is_file()]
    assert [str(p) for p in held if token in p.read_bytes()] == [nodes["RAY_AUTH_TOKEN_PATH"]]
    assert token.decode() not in ended.stdout + ended.stderr


def test_rays_own_command_does_the_same(nodes: dict[str, str], tmp_path: Path) -> None:
    own = sets(f"run={tmp_path}/run", *SMALL, "runner=ray", "ray.workers=1")
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--"]
    command += ["villa", "ingest", "configs/quickstart.yaml", *own]
    done = subprocess.run(command, env=nodes, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "succeeded" in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]
    assert list((tmp_path / "run" / "train" / "base").glob("*.done.json"))
