"""How well mappings find regions, and what fitting them costs, on DocMNIST of several complexities.

python -m benchmarks.mapping --targets 16,33 --seeds 0,1 --variants both,two --steps 400,1200 --split validation

Variants are in benchmarks/mapping.yaml. Data, one-to-one VLM and regions of a (target, seed) are made once; then each
variant is fitted and its pairs are held against the true ones. Prints a table; one JSON line a cell goes to OUT/cells.jsonl,
and a cell that is there is not repeated. CPU seconds are those of the training loop alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.evaluate import assemble
from villa_dist.names import METRICS
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner

VARIANTS = Path(__file__).with_suffix(".yaml")
STUDY = Path(__file__).parents[1] / "configs" / "docmnist_study.yaml"
BEFORE = ("ingest", "vocabulary", "pretrain", "regions")


def config_of(place: Path, target: int, seed: int, split: str, overrides: list[str]) -> Config:
    """The base of the study's config, without what it says of the mapping but its fit, as a run of its own."""
    base = place.parent / "base.yaml"
    base.parent.mkdir(parents=True, exist_ok=True)
    values = yaml.safe_load(STUDY.read_text())["base"]
    values["mapping"] = {"fit": values["mapping"]["fit"]}
    base.write_text(yaml.safe_dump(values))
    own = [f"run={place}", f"seed={seed}", f"docmnist.target={target}", f"evaluate.splits=[{split}]"]
    return load(str(base), [*own, *overrides])


def cells(job: tuple[Path, int, int, str, list[str], dict[str, list[str]]]) -> list[dict[str, Any]]:
    """All variants of one (target, seed)."""
    out, target, seed, split, common, variants = job
    place = out / f"target{target:02d}-seed{seed}"
    found = []
    for name, overrides in variants.items():
        run, cell = place / name, out / "cells" / f"{target}-{seed}-{split}-{name}.json"
        if not cell.exists():
            frozen = "frozen" if any("encoder=frozen" in o or "encoder=adapter" in o for o in overrides) else "base"
            base = config_of(place / frozen, target, seed, split, [*common, *overrides[: frozen == "frozen"]])
            Pipeline(base, LocalRunner()).run(BEFORE)
            if not run.exists():
                shutil.copytree(place / frozen, run, ignore=shutil.ignore_patterns("mapping", "pairs", "config.yaml"))
            config = config_of(run, target, seed, split, [*common, *overrides])
            Pipeline(config, LocalRunner()).run(("fit-mapping", "pairs"))
            lines = (run / "models" / "mapping" / METRICS).read_text().splitlines()
            quality = assemble.mapping(config, split)
            made = {"target": target, "seed": seed, "variant": name, "split": split, **quality}
            made["cpu_seconds"] = json.loads(lines[-1])["cpu_seconds"]
            cell.parent.mkdir(parents=True, exist_ok=True)
            cell.write_text(json.dumps(made))
            shutil.rmtree(run)
        found.append(json.loads(cell.read_text()))
        print(json.dumps(found[-1]), flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Mean ± sd over seeds."""
    groups = list(found[0]["f1_by_group"])
    lines = [f"| target | variant | seeds | CPU s | F1 | {' | '.join(groups)} |", "|" + "---|" * (5 + len(groups))]
    for target, variant in dict.fromkeys((f["target"], f["variant"]) for f in found):
        mine = [f for f in found if (f["target"], f["variant"]) == (target, variant)]
        values = [[m["f1"] for m in mine], *([m["f1_by_group"][g] for m in mine] for g in groups)]
        shown = [f"{statistics.fmean(v):.1f} ± {statistics.stdev(v) if len(v) > 1 else 0:.1f}" for v in values]
        cpu = statistics.median(m["cpu_seconds"] for m in mine)
        lines.append(f"| {target} | {variant} | {len(mine)} | {cpu:.0f} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mapping-benchmark"))
    parser.add_argument("--targets", default="16,33")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--variants", default="both,two")
    parser.add_argument("--steps", default="", help="of the fit; each variant with each, else the study's")
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="as of `villa run`, for all")
    given = parser.parse_args()
    known = yaml.safe_load(VARIANTS.read_text())
    variants = {name: known[name] for name in given.variants.split(",")}
    if given.steps:
        variants = {
            f"{name}, {steps} steps": [*own, f"mapping.fit.steps={steps}"]
            for name, own in variants.items()
            for steps in given.steps.split(",")
        }
    jobs = [
        (given.out.absolute(), int(target), int(seed), given.split, given.set, variants)
        for target in given.targets.split(",")
        for seed in given.seeds.split(",")
    ]
    with ProcessPoolExecutor(given.parallel, mp_context=get_context("spawn")) as pool:
        found = [cell for some in pool.map(cells, jobs) for cell in some]
    print(table(found))


if __name__ == "__main__":
    main()
