"""What intervals and rankings cost beside R-Precision: `python -m benchmarks.items`. CPU seconds; no run is needed.

Made-up embeddings: each region is the sum of its attributes' vectors and noise.
"""

from __future__ import annotations

import time

import numpy as np

from villa_dist.evaluate import items
from villa_dist.evaluate.retrieval import r_precision

SIZES = (
    (3_000, 20, 650, 0.16),
    (36_000, 80, 5_000, 0.0125),
)  # regions, attributes, images, share that has an attribute


def main() -> None:
    random = np.random.default_rng(0)
    for regions, attributes, images, share in SIZES:
        image = np.sort(random.integers(0, images, regions))
        truth = random.random((regions, attributes)) < share
        attribute = _unit(random.normal(size=(attributes, 64)))
        region = _unit(truth @ attribute + 0.8 * random.normal(size=(regions, 64)))
        start = time.process_time()
        found = r_precision(region, attribute, truth)
        measured = time.process_time()
        items.of_model("", found, [(region, truth, image)], attribute, images)
        kept = time.process_time()
        print(
            f"{regions:,} regions, {attributes} attributes, {items.RESAMPLES} resamples: "
            f"R-Precision {measured - start:.2f}, intervals and rankings {kept - measured:.2f}"
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
