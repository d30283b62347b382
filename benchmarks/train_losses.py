"""What each training loss gives: the region VLM fitted to true pairs, at equal steps on the same data, on DocMNIST.

python -m benchmarks.train_losses --targets 16,33 --seeds 0,1,2,3,4 --losses multi_positive,sigmoid,infonce \\
    --steps 800 --split test

Data of a (target, seed) are made once; then a model is trained with each loss (train.loss) and its R-Precision taken on
the true regions of the split. Prints a JSON line a cell and a table; a cell's line is kept in OUT/cells and not made
again. CPU seconds are those of the training loop alone. MNIST: --set digits.mnist_dir=PATH; else scikit-learn's digits.
"""

from __future__ import annotations

import json
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

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
from shards import manifest
from villa_dist import claims
from villa_dist.config import Config
from villa_dist.evaluate import assemble
from villa_dist.names import METRICS
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.stages.base import StageRequest
from villa_dist.train.jobs import TrainRequest, model_folder

LOSSES = ("multi_positive", "sigmoid", "infonce")
JOB = "ground_truth"
Work = tuple[Path, int, int, str, int, list[str], list[str]]  # out, target, seed, split, steps, losses, --set


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


def cells(work: Work) -> list[Cell]:
    """All losses of one (target, seed)."""
    out, target, seed, split, steps, losses, common = work
    place, runner, values = out / f"target{target:02d}-seed{seed}", LocalRunner(), study_base()

    def make(loss: str) -> Cell:
        run = place / loss
        Pipeline(config_of(place / "base", values, target, seed, split, common), runner).run(("ingest", "vocabulary"))
        shutil.rmtree(run, ignore_errors=True)  # of a cell that was cut off
        shutil.copytree(place / "base", run, ignore=shutil.ignore_patterns("config.yaml"))
        chosen = [f"train.loss={loss}", "train.epochs=null", f"train.steps={steps}"]
        config = config_of(run, values, target, seed, split, [*common, *chosen])
        train(config, runner)
        metrics = json.loads((Path(model_folder(config, JOB)) / METRICS).read_text().splitlines()[-1])
        made = {"target": target, "seed": seed, "loss": loss, "split": split, "steps": steps}
        made |= {"images": claims.stage_manifest(config, "train").total, **measure(config, split, runner)}
        shutil.rmtree(run)
        return {**made, "cpu_seconds": metrics["cpu_seconds"]}

    return [
        kept(cell_file(out, target, seed, split, steps, loss, settings=common), partial(make, loss)) for loss in losses
    ]


def table(found: list[Cell]) -> str:
    """R-Precision in percent, mean ± sd over seeds."""
    lines = ["| target | loss | seeds | steps | CPU s | attribute → region | region → attribute |", "|" + "---|" * 7]
    for (target, loss), mine in grouped(found, "target", "loss").items():
        shown = " | ".join(spread([m[direction] for m in mine]) for direction in ("a2r", "r2a"))
        cpu = statistics.median(m["cpu_seconds"] for m in mine)
        lines.append(f"| {target} | {loss} | {len(mine)} | {mine[0]['steps']} | {cpu:.0f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "runs/train-losses")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    losses = given.losses.split(",")
    if unknown := set(losses) - set(LOSSES):
        parser.error(f"--losses: {', '.join(sorted(unknown))} is none of {', '.join(LOSSES)}")
    work = [(given.out.absolute(), *place, given.split, given.steps, losses, given.set) for place in places(given)]
    print(table(all_cells(cells, work, given.parallel)))


if __name__ == "__main__":
    main()
