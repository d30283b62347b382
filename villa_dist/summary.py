"""Short texts about a run: the result table, and what is committed so far."""

from __future__ import annotations

from typing import Any

from shards.commit import StageFolder
from shards.errors import VillaError
from shards.store import Store
from villa_dist import models
from villa_dist.names import JOBS, TITLES, VLMS


def table(metrics: dict[str, Any], report: str) -> str:
    """The result table in plain text; R-Precision in percent."""
    lines = [f"{'R-Precision (%)':<20}{'A -> R':>8}{'R -> A':>8}"]
    for name in VLMS:
        if name in metrics:
            lines.append(f"{TITLES[name]:<20}{metrics[name]['a2r']:>8.1f}{metrics[name]['r2a']:>8.1f}")
    if "mapping" in metrics:
        m = metrics["mapping"]
        lines.append(f"mapping: precision {m['precision']:.1f}, recall {m['recall']:.1f}, F1 {m['f1']:.1f}")
    return "\n".join([*lines, f"report: {report}"])


def status(run: str) -> dict[str, Any]:
    """Committed shards, samples and refusals of every stage of a run, and which models are finished.

    Raises: VillaError when there is no such run.
    """
    store = Store(run)
    if not store.exists("config.yaml") and not store.exists("train"):
        raise VillaError(
            f"{store.path()} is not the folder of a run: it holds neither config.yaml nor train/; "
            "give the folder that the config names as `run`, which is also in every result line"
        )
    stages: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        place = Store(f"{run}/{split}")
        names = sorted(n.rsplit("/", 1)[-1] for n in place.fs.ls(place.path(), detail=False)) if place.exists() else []
        for name in names:
            folder = StageFolder(f"{run}/{split}", name)
            done = folder.shards_done()
            if not done:
                continue
            markers = [folder.marker(s) for s in done]
            refused: dict[str, int] = {}
            for marker in markers:
                for reason, count in marker.refused.items():
                    refused[reason] = refused.get(reason, 0) + count
            stages[f"{split}/{name}"] = {
                "shards": len(done),
                "samples": sum(m.samples for m in markers),
                "refused": refused,
                "complete": folder.store.exists("manifest.parquet"),
            }
    finished = {n: models.done(f"{run}/models/{n}") is not None for n in JOBS}
    return {"run": run, "stages": stages, "models": finished, "report": store.exists("report.html")}
