"""A second round: ViLLA, trained on the first mapping's pairs, is what the next mapping starts from (pretrain.start).

python -m benchmarks.second_round --targets 16,33 --seeds 0,1,2 --split test

The first round is `mapping.loss: both` alone with --steps steps, which leaves room above it. The second fits the mapping's
tower from ViLLA's (`end_to_end`), or a head on ViLLA's own embeddings (`frozen`). `longer` is the first with as many steps
as both rounds together, which is what a second one has to beat. F1 is held against true pairs; presence is what a user sees
without labels, here on the validation split: a second round is taken only where it rose (the guard).
One JSON line a cell goes to OUT/cells, and a cell that is there is not made again. MNIST: --set digits.mnist_dir=PATH.
"""

from __future__ import annotations

import shutil
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
from villa_dist.evaluate import assemble
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner

LEFT = ("models", "pairs", "embeddings", "config.yaml", "results.json")  # out of a run that another begins from
Work = tuple[Path, int, int, str, int, list[str]]  # out, target, seed, split, steps, --set


def base_values(steps: int) -> dict[str, Any]:
    values = study_base()
    fit = {**values["mapping"]["fit"], "epochs": None, "steps": steps}
    return {**values, "mapping": {"fit": fit}}


def cells(work: Work) -> list[Cell]:
    """Both rounds of one (target, seed)."""
    out, target, seed, split, steps, common = work
    place, runner, values = out / f"target{target:02d}-seed{seed}", LocalRunner(), base_values(steps)
    villa = place / "first/models/villa"
    again = ["pretrain.epochs=null", "pretrain.steps=0", f"pretrain.start={villa}"]
    rounds: dict[str, list[str]] = {
        "first": [],
        "longer": [f"mapping.fit.steps={2 * steps}"],
        "second, end_to_end": again,
        "second, frozen": [*again, "mapping.encoder=frozen"],
    }

    def make(name: str) -> Cell:
        run = place / name.replace(", ", "-")
        if name != "first":
            shutil.rmtree(run, ignore_errors=True)  # of a cell that was cut off
            shutil.copytree(
                place / "first", run, ignore=shutil.ignore_patterns(*LEFT, *["regions"] * ("frozen" in name))
            )
        splits = f"evaluate.splits=[{','.join(dict.fromkeys(['validation', split]))}]"
        kept_out = ["evaluate.ground_truth=false", splits]
        config = config_of(run, values, target, seed, split, [*common, *kept_out, *rounds[name]])
        pipeline = Pipeline(config, runner)
        pipeline.run(("ingest", "vocabulary", "pretrain", "regions", "fit-mapping", "pairs"))
        if name == "first":
            pipeline.run(("train",))
        quality = pipeline.mapping_quality("validation")
        found = assemble.mapping(config, split)
        if name != "first":
            shutil.rmtree(run)
        return {"target": target, "seed": seed, "round": name, "presence": 100 * quality["presence"], **found}

    return [
        kept(cell_file(out, target, seed, split, steps, name, settings=common), partial(make, name)) for name in rounds
    ]


def guarded(found: list[Cell]) -> list[Cell]:
    """Of each (target, seed) the second round, but the first where presence did not rise."""
    made = []
    for mine in grouped(found, "target", "seed").values():
        by_round = {m["round"]: m for m in mine}
        first, second = by_round["first"], by_round["second, end_to_end"]
        made.append({**(second if second["presence"] > first["presence"] else first), "round": "second, guarded"})
    return made


def table(found: list[Cell]) -> str:
    """Mean ± sd over seeds."""
    groups = list(found[0]["f1_by_group"])
    lines = [
        f"| target | round | seeds | F1 | {' | '.join(groups)} | presence, validation |",
        "|" + "---|" * (5 + len(groups)),
    ]
    for (target, name), mine in grouped(found, "target", "round").items():
        shown = [spread([m["f1"] for m in mine]), *(spread([m["f1_by_group"][g] for m in mine]) for g in groups)]
        lines.append(
            f"| {target} | {name} | {len(mine)} | {' | '.join(shown)} | {spread([m['presence'] for m in mine])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, "runs/second-round")
    parser.add_argument("--steps", type=int, default=400, help="of a round's fit")
    given = parser.parse_args()
    work = [(given.out.absolute(), *place, given.split, given.steps, given.set) for place in places(given)]
    found = all_cells(cells, work, given.parallel)
    print(table([*found, *guarded(found)]))


if __name__ == "__main__":
    main()
