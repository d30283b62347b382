"""Hierarchical merging of image segments (Uijlings et al., Selective Search, IJCV 2013), in numpy.

The two most similar neighbours merge until one segment is left; each segment on the way is a candidate region.
Letters: H x W image, S segments, M = up to 2S - 1 nodes, C descriptor bins, E pairs of neighbours.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Nodes in the order they were made: the segments, then each merger. Boxes are xyxy in pixels."""

    boxes: Float[np.ndarray, "M 4"]
    pixels: Float[np.ndarray, " M"]  # of the segment, not of its box
    depth: Int[np.ndarray, " M"]  # mergers between a node and the last one
    leaf: Int[np.ndarray, " M"]  # 1 for the segments that were not merged from others


@dataclass(frozen=True, slots=True)
class Likeness:
    """Weights of what makes two neighbours alike: descriptors, small size, and how well they fill their common box."""

    descriptor: float
    size: float = 1.0
    fill: float = 1.0


def merge(labels: Int[np.ndarray, "H W"], descriptor: Float[np.ndarray, "S C"], likeness: Likeness) -> Hierarchy:
    """Merge the segments `labels` (0 to S - 1, all of them connected) by their descriptors' intersection and geometry.

    Ties go to the pair of lower numbers, so equal images give equal hierarchies.
    """
    count, whole = len(descriptor), float(labels.size)
    nodes = 2 * count - 1
    pixels, boxes = np.zeros(nodes), np.zeros((nodes, 4))
    bins = np.zeros((nodes, descriptor.shape[1]))
    pixels[:count] = np.bincount(labels.ravel(), minlength=count)
    boxes[:count] = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels + 1)]
    bins[:count] = descriptor

    def alike(a: Int[np.ndarray, " E"] | int, b: Int[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
        low, high = np.minimum(boxes[a, :2], boxes[b, :2]), np.maximum(boxes[a, 2:], boxes[b, 2:])
        both = pixels[a] + pixels[b]
        same = np.minimum(bins[a], bins[b]).sum(-1) if likeness.descriptor else 0.0
        hole = (high - low).prod(-1) - both
        found: Float[np.ndarray, " E"] = (
            likeness.descriptor * same - (likeness.size * both + likeness.fill * hole) / whole
        )
        return found

    pairs = neighbours(labels, count)
    heap = [(-s, a, b) for s, (a, b) in zip(alike(pairs[:, 0], pairs[:, 1]).tolist(), pairs.tolist(), strict=True)]
    heapq.heapify(heap)
    beside: list[set[int]] = [set() for _ in range(count)]
    for a, b in pairs.tolist():
        beside[a].add(b)
        beside[b].add(a)
    alive, parent, made = [True] * count, np.zeros(nodes, np.int64), count
    while heap:
        _, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        share = pixels[a] / (pixels[a] + pixels[b])
        bins[made] = bins[a] * share + bins[b] * (1 - share)
        pixels[made] = pixels[a] + pixels[b]
        boxes[made, :2] = np.minimum(boxes[a, :2], boxes[b, :2])
        boxes[made, 2:] = np.maximum(boxes[a, 2:], boxes[b, 2:])
        alive[a] = alive[b] = False
        alive.append(True)
        parent[a] = parent[b] = made
        around = sorted((beside[a] | beside[b]) - {a, b})
        beside.append(set(around))
        if around:
            for other, likely in zip(around, alike(made, np.array(around)).tolist(), strict=True):
                beside[other] -= {a, b}
                beside[other].add(made)
                heapq.heappush(heap, (-likely, other, made))
        made += 1
    depth = np.zeros(made, np.int64)
    for node in range(made - 2, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return Hierarchy(boxes[:made], pixels[:made], depth, (np.arange(made) < count).astype(np.int64))


def neighbours(labels: Int[np.ndarray, "H W"], count: int) -> Int[np.ndarray, "E 2"]:
    """Pairs of segments that share an edge of a pixel, each once, the lower number first."""
    across = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()])
    down = np.stack([labels[:-1].ravel(), labels[1:].ravel()])
    both = np.concatenate([across, down], 1).astype(np.int64)
    both = both[:, both[0] != both[1]]
    code = np.unique(both.min(0) * count + both.max(0))
    return np.stack([code // count, code % count], 1)
