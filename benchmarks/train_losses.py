"""What each training loss gives: the region VLM fitted to true pairs, at equal steps on the same data, on DocMNIST.

python -m benchmarks.train_losses --targets 16,33 --seeds 0,1,2,3,4 --losses multi_positive,sigmoid,infonce \\
    --steps 800 --split test

Data of a (target, seed) are made once; then a model is trained with each loss (train.loss) and its R-Precision taken on
the true regions of the split. Prints a JSON line a cell and a table; a cell's line is kept in OUT/cells and not made
again. CPU seconds are those of the training loop alone. MNIST: --set digits.mnist_dir=PATH; else scikit-learn's digits.
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

from shards import manifest
from villa_dist import claims
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.evaluate import assemble
from villa_dist.names import METRICS
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.stages.base import StageRequest
from villa_dist.train.jobs import TrainRequest, model_folder

STUDY = Path(__file__).parents[1] / "configs" / "docmnist_study.yaml"
LOSSES = ("multi_positive", "sigmoid", "infonce")
JOB = "ground_truth"
Work = tuple[Path, int, int, str, int, list[str], list[str]]  # out, target, seed, split, steps, losses, --set


def config_of(place: Path, target: int, seed: int, split: str, overrides: list[str]) -> Config:
    """The base of the study's config as a run of its own."""
    base = place.parent / "base.yaml"
    base.parent.mkdir(parents=True, exist_ok=True)
    base.write_text(yaml.safe_dump(yaml.safe_load(STUDY.read_text())["base"]))
    own = [f"run={place}", f"seed={seed}", f"docmnist.target={target}", f"evaluate.splits=[{split}]"]
    return load(str(base), [*own, *overrides])


def train(config: Config, runner: LocalRunner) -> None:
    claim = claims.training(config, JOB)
    runner.train(TrainRequest(JOB, config, claim.folders[-1].claim(claim.config)))


def measure(config: Config, split: str, runner: LocalRunner) -> dict[str, Any]:
    claim, shards = claims.embed(config, split, JOB), claims.stage_manifest(config, split).shards
    folder = claim.folders[-1]
    params = {"model": model_folder(config, JOB)}
    request = StageRequest("embed", folder.stage, split, config, folder.claim(claim.config), params)
    runner.shards(request, shards, lambda shard: None)
    manifest.write(folder, shards)
    return assemble.retrieval(config, split, JOB)


def cells(work: Work) -> list[dict[str, Any]]:
    """All losses of one (target, seed)."""
    out, target, seed, split, steps, losses, common = work
    place, runner, found = out / f"target{target:02d}-seed{seed}", LocalRunner(), []
    for loss in losses:
        cell, run = out / "cells" / f"{target}-{seed}-{split}-{steps}-{loss}.json", place / loss
        if not cell.exists():
            Pipeline(config_of(place / "base", target, seed, split, common), runner).run(("ingest", "vocabulary"))
            shutil.rmtree(run, ignore_errors=True)  # of a cell that was cut off
            shutil.copytree(place / "base", run, ignore=shutil.ignore_patterns("config.yaml"))
            chosen = [f"train.loss={loss}", "train.epochs=null", f"train.steps={steps}"]
            config = config_of(run, target, seed, split, [*common, *chosen])
            train(config, runner)
            metrics = json.loads((Path(model_folder(config, JOB)) / METRICS).read_text().splitlines()[-1])
            made = {"target": target, "seed": seed, "loss": loss, "split": split, "steps": steps}
            made |= {"images": claims.stage_manifest(config, "train").total, **measure(config, split, runner)}
            made["cpu_seconds"] = metrics["cpu_seconds"]
            cell.parent.mkdir(parents=True, exist_ok=True)
            cell.write_text(json.dumps(made))
            shutil.rmtree(run)
        found.append(json.loads(cell.read_text()))
        print(json.dumps(found[-1]), flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """R-Precision in percent, mean ± sd over seeds."""
    lines = ["| target | loss | seeds | steps | CPU s | attribute → region | region → attribute |", "|" + "---|" * 7]
    for target, loss in dict.fromkeys((f["target"], f["loss"]) for f in found):
        mine = [f for f in found if (f["target"], f["loss"]) == (target, loss)]
        shown = []
        for direction in ("a2r", "r2a"):
            values = [m[direction] for m in mine]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            shown.append(f"{statistics.fmean(values):.1f} ± {sd:.1f}")
        cpu = statistics.median(m["cpu_seconds"] for m in mine)
        lines.append(f"| {target} | {loss} | {len(mine)} | {mine[0]['steps']} | {cpu:.0f} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/train-losses"))
    parser.add_argument("--targets", default="16,33")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="as of `villa run`, for all")
    given = parser.parse_args()
    losses = given.losses.split(",")
    if unknown := set(losses) - set(LOSSES):
        parser.error(f"--losses: {', '.join(sorted(unknown))} is none of {', '.join(LOSSES)}")
    work = [
        (given.out.absolute(), int(target), int(seed), given.split, given.steps, losses, given.set)
        for target in given.targets.split(",")
        for seed in given.seeds.split(",")
    ]
    with ProcessPoolExecutor(given.parallel, mp_context=get_context("spawn")) as pool:
        found = [cell for some in pool.map(cells, work) for cell in some]
    print(table(found))


if __name__ == "__main__":
    main()
