"""Claim: the engines of average precision cost a fraction of the official tools' CPU time, for the same figures.

    python -m benchmarks.evaluation EVALREF_FOLDER TRUTH_COCO TRUTH_LVIS [--copies 20]

EVALREF_FOLDER holds `fastestdet_on_natural_results.json` (detections for TRUTH_COCO) and `lvis/detections.json` (for
TRUTH_LVIS). Both sets are repeated under new image ids. CPU seconds of this process, reading JSON left out; engines take
turns, the median of `--repeats`. Bars: COCO 14 times faster, LVIS 5 times.

    python -m benchmarks.evaluation EVALREF_FOLDER TRUTH_COCO TRUTH_LVIS --filled 50

LVIS alone, at the size that is published: each image of the 100 repeated 50 times and filled up to 300 detections. Each
engine in a process of its own, once; memory is the most that process held, and what it held with the input read.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from villa_dist.evaluate.average_precision import AveragePrecision
from villa_dist.evaluate.coco_engine import coco_average_precision
from villa_dist.evaluate.detection import Detections, Truth
from villa_dist.evaluate.detection_files import read_detections, read_truth
from villa_dist.evaluate.lvis_engine import PER_IMAGE, lvis_average_precision


def repeated(truth: Truth, detections: Detections, copies: int) -> tuple[Truth, Detections]:
    """Every image `copies` times, under ids of its own; scores of the copies differ a little, or all would tie."""
    step = int(truth.images.max()) + 1
    random = np.random.default_rng(0)

    def ids(column: np.ndarray) -> np.ndarray:
        return np.concatenate([column + n * step for n in range(copies)])

    def pairs(rows: np.ndarray | None) -> np.ndarray | None:
        return None if rows is None else np.concatenate([rows + [n * step, 0] for n in range(copies)])

    same = {c: np.concatenate([getattr(truth, c)] * copies) for c in ("category", "box", "area", "crowd")}
    bigger = replace(
        truth,
        images=ids(truth.images),
        image=ids(truth.image),
        negative=pairs(truth.negative),
        not_exhaustive=pairs(truth.not_exhaustive),
        **same,
    )
    score = np.concatenate([detections.score] * copies)
    found = Detections(
        ids(detections.image),
        np.concatenate([detections.category] * copies),
        np.concatenate([detections.box] * copies),
        score + random.normal(0, 1e-3, len(score)),
    )
    return bigger, found


def compare(evaluate: Callable[..., AveragePrecision], truth: Truth, found: Detections, repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"fast": [], "faster-coco-eval": [], "official": []}
    figures = {}
    for _ in range(repeats):
        for engine, times in seconds.items():
            start = time.process_time()
            figures[engine] = evaluate(truth, found, engine=engine).metrics
            times.append(time.process_time() - start)
    official = figures.pop("official")
    gap = max(abs(found[k] - official[k]) for found in figures.values() for k in official)
    cpu = {engine: statistics.median(times) for engine, times in seconds.items()}
    return {
        "images": len(truth.images),
        "detections": len(found),
        "cpu_s": {engine: round(value, 2) for engine, value in cpu.items()},
        "times_faster_than_official": {e: round(cpu["official"] / cpu[e], 1) for e in figures},
        "largest_difference": gap,
    }


def filled(found: Detections, images: np.ndarray, per_image: int) -> Detections:
    """Every image up to `per_image` detections: its own and moved copies of any, with lower scores."""
    random = np.random.default_rng(1)
    have = np.bincount(np.searchsorted(images, found.image), minlength=len(images))
    image = np.repeat(images, np.maximum(per_image - have, 0))
    like = random.integers(0, len(found), len(image))
    box = found.box[like].astype(np.float64)
    box[:, :2] = np.maximum(box[:, :2] + random.normal(0, 20, (len(image), 2)), 0)
    low = found.score[like] * random.uniform(0.05, 0.9, len(image))
    return Detections(
        np.concatenate([found.image, image]),
        np.concatenate([found.category, found.category[like]]),
        np.concatenate([found.box, box]),
        np.concatenate([found.score, low]),
    )


def once(evalref: Path, truth_file: Path, copies: int, engine: str) -> dict[str, Any]:
    """One engine on the filled LVIS set, in a process of its own."""
    truth, found = repeated(read_truth(truth_file), read_detections(evalref / "lvis/detections.json"), copies)
    found = filled(found, np.sort(truth.images), PER_IMAGE)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    metrics = lvis_average_precision(truth, found, engine=engine).metrics
    return {
        "engine": engine,
        "images": len(truth.images),
        "detections": len(found),
        "cpu_s": round(time.process_time() - start, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "input_mib": round(before),
        "AP": metrics["AP"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evalref", type=Path)
    parser.add_argument("coco_truth", type=Path)
    parser.add_argument("lvis_truth", type=Path)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--filled", type=int, metavar="COPIES", help="LVIS alone, filled up, with memory")
    args = parser.parse_args()
    if args.filled:
        for engine in ("fast", "official"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(once, args.evalref, args.lvis_truth, args.filled, engine).result()
            print(json.dumps(found), flush=True)
        return
    coco = repeated(
        read_truth(args.coco_truth), read_detections(args.evalref / "fastestdet_on_natural_results.json"), args.copies
    )
    lvis = repeated(read_truth(args.lvis_truth), read_detections(args.evalref / "lvis/detections.json"), args.copies)
    print(json.dumps({"coco": compare(coco_average_precision, *coco, args.repeats)}), flush=True)
    print(json.dumps({"lvis": compare(lvis_average_precision, *lvis, args.repeats)}), flush=True)


if __name__ == "__main__":
    main()
