"""What benchmarks over DocMNIST share: a grid of complexities, seeds and choices, each cell made once and kept."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import yaml

from shards.digest import fingerprint
from villa_dist.config import Config
from villa_dist.config_file import load

STUDY = Path(__file__).parents[1] / "configs" / "docmnist_study.yaml"
Cell = dict[str, Any]
Job = TypeVar("Job")


def arguments(doc: str | None, out: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--targets", default="16,33")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="as of `villa run`, for all")
    return parser


def places(given: argparse.Namespace) -> list[tuple[int, int]]:
    """(target, seed) of every data set that is asked for."""
    return [(int(target), int(seed)) for target in given.targets.split(",") for seed in given.seeds.split(",")]


def config_of(place: Path, values: dict[str, Any], target: int, seed: int, split: str, overrides: list[str]) -> Config:
    """A run of its own in `place`. values: of the config file."""
    base = place.parent / "base.yaml"
    base.parent.mkdir(parents=True, exist_ok=True)
    base.write_text(yaml.safe_dump(values))
    own = [f"run={place}", f"seed={seed}", f"docmnist.target={target}", f"evaluate.splits=[{split}]"]
    return load(str(base), [*own, *overrides])


def study_base() -> dict[str, Any]:
    """The base of the study's config."""
    values: dict[str, Any] = yaml.safe_load(STUDY.read_text())["base"]
    return values


def cell_file(out: Path, *parts: object, settings: Sequence[str]) -> Path:
    """settings: all that is set for it, so that another setting is another cell."""
    return out / "cells" / f"{'-'.join(map(str, parts))}-{fingerprint(list(settings))[:8]}.json"


def kept(cell: Path, make: Callable[[], Cell]) -> Cell:
    """The cell of a file, made and written where there is none; printed either way."""
    if not cell.exists():
        made = make()
        cell.parent.mkdir(parents=True, exist_ok=True)
        cell.write_text(json.dumps(made))
    found: Cell = json.loads(cell.read_text())
    print(json.dumps(found), flush=True)
    return found


def all_cells(cells: Callable[[Job], list[Cell]], jobs: Iterable[Job], parallel: int) -> list[Cell]:
    with ProcessPoolExecutor(parallel, mp_context=get_context("spawn")) as pool:
        return [cell for some in pool.map(cells, jobs) for cell in some]


def spread(values: Sequence[float]) -> str:
    """Mean ± sd."""
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def grouped(found: list[Cell], *keys: str) -> dict[tuple[Any, ...], list[Cell]]:
    """Cells that are equal in `keys`, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in found:
        groups.setdefault(tuple(cell[k] for k in keys), []).append(cell)
    return groups
