"""Claim: `segments` finds more of the objects in photos than selective search, with fewer boxes and in less time.

    python -m benchmarks.proposals FOLDER [--fit] [--limit N] [--found RESULTS.json]

FOLDER holds COCO photos and boxes (`images/`, `annotations_exact.json`), or photos and `ground-truth/*.txt` of lines
"name x1 y1 x2 y2". Prints, for each backend, recall at IoU of one half with the best 10, 30, 100 and 300 boxes, and the
median CPU milliseconds an image. `segments` is measured with the weights it has and, in COCO's case, with weights fitted on
the other half of the photos, which is the honest figure there; a class of OpenCV's selective search is measured where it is
installed. --found: boxes of a trained detector on these photos, as COCO results. --fit prints WEIGHTS and BIAS fitted on all
photos of FOLDER.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from villa_dist.config import RegionsConfig, SegmentsConfig
from villa_dist.regions import objectness as scoring
from villa_dist.regions.backends import make_proposer
from villa_dist.regions.boxes import iou
from villa_dist.regions.proposals import Photo, keep, regions_of
from villa_dist.regions.segments import candidates
from villa_dist.types import RegionSet

BUDGETS = (10, 30, 100, 300)
Truth = tuple[Path, np.ndarray]  # a photo and its boxes
Weights = tuple[np.ndarray, float]


def coco(folder: Path) -> list[Truth]:
    data = json.loads((folder / "annotations_exact.json").read_text())
    boxes: dict[int, list[list[float]]] = {}
    for one in data["annotations"]:
        if not one.get("iscrowd"):
            x, y, w, h = one["bbox"]
            boxes.setdefault(one["image_id"], []).append([x, y, x + w, y + h])
    named = {i["id"]: folder / "images" / i["file_name"] for i in data["images"]}
    return [(named[i], np.array(found)) for i, found in sorted(boxes.items())]


def listed(folder: Path) -> list[Truth]:
    made = []
    for text in sorted((folder / "ground-truth").glob("*.txt")):
        rows = [line.split()[-4:] for line in text.read_text().splitlines() if line.strip()]
        made.append((folder / "images" / f"{text.stem}.jpg", np.array(rows, float)))
    return made


def photo(path: Path) -> Photo:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return Photo(path.stem, pixels.shape[1], pixels.shape[0], pixels)


def measure(name: str, propose: Callable[[Photo], np.ndarray], truth: list[Truth]) -> dict[str, float | str]:
    """One row of the table. propose: boxes of a photo, best first."""
    hits, total, seconds = dict.fromkeys(BUDGETS, 0), 0, []
    for path, boxes in truth:
        shown = photo(path)
        started = time.process_time()
        found = propose(shown)
        seconds.append(time.process_time() - started)
        overlap = iou(boxes, found.astype(np.float64).reshape(-1, 4))
        total += len(boxes)
        for budget in BUDGETS:
            hits[budget] += int((overlap[:, :budget].max(1, initial=0) >= 0.5).sum())
    row: dict[str, float | str] = {"backend": name}
    row |= {f"recall@{b}": round(hits[b] / total, 3) for b in BUDGETS}
    row["cpu_ms"] = round(1000 * statistics.median(seconds), 1)
    print("  ".join(f"{k} {v}" for k, v in row.items()), file=sys.stderr, flush=True)
    return row


def backend(config: RegionsConfig) -> Callable[[Photo], np.ndarray]:
    proposer = make_proposer(config)
    return lambda shown: regions_of(proposer, config, [shown])[0].regions.boxes


def with_weights(config: RegionsConfig, of: Callable[[Photo], Weights]) -> Callable[[Photo], np.ndarray]:
    """`segments` with other weights for each photo."""

    def propose(shown: Photo) -> np.ndarray:
        assert shown.pixels is not None
        boxes, described = candidates(shown.pixels, config.segments)
        weights, bias = of(shown)
        raw = RegionSet(boxes, scoring.objectness(described, weights, bias))
        return keep(raw, config, shown, ranked=True).regions.boxes

    return propose


def selective_search() -> Callable[[Photo], np.ndarray] | None:
    """OpenCV's, fast mode, photos reduced to 256 pixels; None where opencv-contrib is not installed."""
    try:
        import cv2  # type: ignore[import-not-found,unused-ignore]

        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except (ImportError, AttributeError):
        return None

    def propose(shown: Photo) -> np.ndarray:
        ratio = min(1.0, 256 / max(shown.width, shown.height))
        search.setBaseImage(cv2.resize(shown.pixels[..., ::-1], None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA))
        search.switchToSelectiveSearchFast()
        x, y, w, h = search.process().T
        return np.stack([x, y, x + w, y + h], 1) / ratio

    return propose


def found_by_detector(results: Path, folder: Path) -> Callable[[Photo], np.ndarray]:
    """What a detector found, classes left out; its time is not measured."""
    listed_images = json.loads((folder / "annotations_exact.json").read_text())["images"]
    names = {i["id"]: Path(i["file_name"]).stem for i in listed_images}
    boxes: dict[str, list[list[float]]] = {}
    for one in sorted(json.loads(results.read_text()), key=lambda d: -d["score"]):
        x, y, w, h = one["bbox"]
        if one["image_id"] in names:
            boxes.setdefault(names[one["image_id"]], []).append([x, y, x + w, y + h])
    return lambda shown: np.array(boxes.get(shown.key, []))


def fit(truth: list[Truth], config: SegmentsConfig) -> Weights:
    """Logistic regression: does a candidate meet an object with IoU of at least one half?"""
    from sklearn.linear_model import LogisticRegression

    described, meets = [], []
    for path, boxes in truth:
        pixels = photo(path).pixels
        assert pixels is not None
        found, features = candidates(pixels, config)
        described.append(features)
        meets.append(iou(boxes, found.astype(np.float64)).max(0) >= 0.5)
    x, y = np.concatenate(described), np.concatenate(meets)
    mean, deviation = x.mean(0), x.std(0) + 1e-9
    model = LogisticRegression(C=1.0, max_iter=1000).fit((x - mean) / deviation, y)
    weights = model.coef_[0] / deviation
    return weights, float(model.intercept_[0] - weights @ mean)


def main() -> None:
    folder, fitting = Path(sys.argv[1]), "--fit" in sys.argv
    is_coco = (folder / "annotations_exact.json").is_file()
    truth = coco(folder) if is_coco else listed(folder)
    if "--limit" in sys.argv:
        truth = truth[: int(sys.argv[sys.argv.index("--limit") + 1])]
    config = RegionsConfig(proposals="segments", top_k=max(BUDGETS))
    if fitting:
        weights, bias = fit(truth, config.segments)
        print("WEIGHTS = np.array([" + ", ".join(f"{w:.4g}" for w in weights) + f"])\nBIAS = {bias:.4g}")
        return
    rows = [measure("segments", backend(config), truth)]
    if is_coco:
        halves = [fit(truth[1 - half :: 2], config.segments) for half in (0, 1)]
        place = {path.stem: n for n, (path, _) in enumerate(truth)}
        rows.append(
            measure("segments, other half's weights", with_weights(config, lambda p: halves[place[p.key] % 2]), truth)
        )
        if "--found" in sys.argv:
            found = found_by_detector(Path(sys.argv[sys.argv.index("--found") + 1]), folder)
            rows.append(measure("trained detector", found, truth))
    whole = RegionsConfig(proposals="grid", grid=[1, 1], grid_levels=5)
    rows.append(measure("grid 1 to 16", backend(whole), truth))
    search = selective_search()
    if search is not None:
        rows.append(measure("OpenCV selective search", search, truth))
    print(json.dumps({"photos": len(truth), "boxes": sum(len(b) for _, b in truth), "rows": rows}))


if __name__ == "__main__":
    main()
