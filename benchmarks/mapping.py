"""How well mappings find regions, and what fitting them costs, on DocMNIST of several complexities.

python -m benchmarks.mapping --targets 16,33 --seeds 0,1 --variants both,two --steps 400,1200 --split validation

Variants are in benchmarks/mapping.yaml. Data, one-to-one VLM and regions of a (target, seed) are made once; then each
variant is fitted and its pairs are held against the true ones. Prints a table; one JSON line a cell goes to OUT/cells.jsonl,
and a cell that is there is not repeated. CPU seconds are those of the training loop alone.
"""

from __future__ import annotations

import json
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.study_cells import (
    Cell,
    all_cells,
    arguments,
    cell_file,
    config_of,
    grouped,
    kept,
    places,
    spread,
    study_base,
)
from villa_dist.evaluate import assemble
from villa_dist.names import METRICS
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner

VARIANTS = Path(__file__).with_suffix(".yaml")
BEFORE = ("ingest", "vocabulary", "pretrain", "regions")
Work = tuple[Path, int, int, str, list[str], dict[str, list[str]]]  # out, target, seed, split, --set, variants


def base_values() -> dict[str, Any]:
    """The base of the study's config, without what it says of the mapping but its fit."""
    values = study_base()
    return {**values, "mapping": {"fit": values["mapping"]["fit"]}}


def cells(work: Work) -> list[Cell]:
    """All variants of one (target, seed)."""
    out, target, seed, split, common, variants = work
    place, values = out / f"target{target:02d}-seed{seed}", base_values()

    def make(name: str, overrides: list[str]) -> Cell:
        run = place / name
        frozen = "frozen" if any("encoder=frozen" in o or "encoder=adapter" in o for o in overrides) else "base"
        before = [*common, *overrides[: frozen == "frozen"]]
        Pipeline(config_of(place / frozen, values, target, seed, split, before), LocalRunner()).run(BEFORE)
        shutil.rmtree(run, ignore_errors=True)  # of a cell that was cut off
        shutil.copytree(place / frozen, run, ignore=shutil.ignore_patterns("mapping", "pairs", "config.yaml"))
        config = config_of(run, values, target, seed, split, [*common, *overrides])
        Pipeline(config, LocalRunner()).run(("fit-mapping", "pairs"))
        lines = (run / "models" / "mapping" / METRICS).read_text().splitlines()
        quality = assemble.mapping(config, split)
        shutil.rmtree(run)
        made = {"target": target, "seed": seed, "variant": name, "split": split, **quality}
        return {**made, "cpu_seconds": json.loads(lines[-1])["cpu_seconds"]}

    return [
        kept(cell_file(out, target, seed, split, name, settings=[*common, *own]), partial(make, name, own))
        for name, own in variants.items()
    ]


def table(found: list[Cell]) -> str:
    """Mean ± sd over seeds."""
    groups = list(found[0]["f1_by_group"])
    lines = [f"| target | variant | seeds | CPU s | F1 | {' | '.join(groups)} |", "|" + "---|" * (5 + len(groups))]
    for (target, variant), mine in grouped(found, "target", "variant").items():
        shown = [spread([m["f1"] for m in mine]), *(spread([m["f1_by_group"][g] for m in mine]) for g in groups)]
        cpu = statistics.median(m["cpu_seconds"] for m in mine)
        lines.append(f"| {target} | {variant} | {len(mine)} | {cpu:.0f} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "runs/mapping-benchmark")
    parser.add_argument("--variants", default="both,two")
    parser.add_argument("--steps", default="", help="of the fit; each variant with each, else the study's")
    given = parser.parse_args()
    known = yaml.safe_load(VARIANTS.read_text())
    variants = {name: known[name] for name in given.variants.split(",")}
    if given.steps:
        variants = {
            f"{name}, {steps} steps": [*own, f"mapping.fit.steps={steps}"]
            for name, own in variants.items()
            for steps in given.steps.split(",")
        }
    jobs = [(given.out.absolute(), *place, given.split, given.set, variants) for place in places(given)]
    print(table(all_cells(cells, jobs, given.parallel)))


if __name__ == "__main__":
    main()
