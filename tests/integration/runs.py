"""Tiny runs for the integration and fault tests: the real command line, a model that trains in seconds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

TINY = [
    "runner=local",
    "docmnist.budget={train: 1200, validation: 300, test: 400}",
    "docmnist.shard_images=24",
    "model.image.width=8",
    "model.text.buckets=256",
    *(
        f"{job}.{setting}"
        for job in ("pretrain", "train", "mapping.fit")
        for setting in ("steps=6", "batch_images=16", "workers=1", "warmup_steps=2", "checkpoint_steps=2")
    ),
    "mapping.exclusive=[digit, colour, shape, size]",
    "mapping.turned=[shape, size]",
    "mapping.recoloured=[shape, size]",
    "mapping.draws=absence",
]
ONE_TOWER = ["mapping.exclusive=[]", "mapping.turned=[]", "mapping.recoloured=[]", "mapping.draws=uniform"]


def villa(
    *arguments: str, timeout: float = 600.0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The `villa` command in a process of its own."""
    command = [sys.executable, "-m", "cluster", *arguments]
    root = str(Path(__file__).parents[2])
    given = {**os.environ, "PYTHONPATH": root, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=given)


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def config_file(folder: Path, text: str = "seed: 0\n") -> str:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def result_line(ended: subprocess.CompletedProcess[str]) -> dict:
    """The one JSON line on stdout of a command that succeeded."""
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = ended.stdout.splitlines()
    assert len(lines) == 1, f"stdout must hold one line: {ended.stdout!r}"
    return json.loads(lines[0])


def contents(run: Path) -> dict[str, str]:
    """sha256 of all that must not depend on how a run went: shards, sidecars, manifests, weights, metrics."""
    kept = ("*.tar", "*.idx", "*.parquet", "model.safetensors", "results.json")
    return {
        str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest()
        for pattern in kept
        for p in sorted(run.rglob(pattern))
        if ".attempts" not in p.parts
    }


def markers(run: Path) -> dict[str, tuple[int, int]]:
    """Inode and mtime of every commit marker: a shard that is committed again has others."""
    found = [*run.rglob("*.done.json"), *run.glob("models/*/done.json")]
    return {str(p.relative_to(run)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}
