"""Non-maximum suppression: greedy, by score, exact, in numpy; torchvision's op where it imports.

Conventions: boxes are xyxy without the "+1" of old Pascal VOC code; a box is suppressed by a kept one of a higher score when
their IoU is *greater* than the threshold; equal scores go by index, lower first; boxes without area suppress nothing and are
not suppressed. Arithmetic is that of the boxes' dtype, as in torchvision's kernel.

Letters: K boxes, M boxes kept so far, B boxes of a block.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from villa_dist.optional import torchvision_ops
from villa_dist.regions.boxes import area

BLOCK = 256  # boxes decided together


def nms(
    boxes: Float[np.ndarray, "K 4"], scores: Float[np.ndarray, " K"], threshold: float, limit: int | None = None
) -> Int[np.ndarray, " M"]:
    """Indices of the boxes kept, best score first, at most `limit` of them.

    Memory is O(K x BLOCK), whatever K. Raises: ValueError for scores or boxes that are not finite.
    """
    if len(boxes) != len(scores):
        raise ValueError(f"{len(boxes)} boxes have {len(scores)} scores")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("boxes or scores hold NaN or infinity")
    limit = len(boxes) if limit is None else limit
    ops = torchvision_ops()
    if ops is not None:
        kept = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores.astype(boxes.dtype)), threshold)
        return np.asarray(kept.numpy()[:limit], np.int64)
    return blocked_nms(boxes, scores, threshold, limit)


def class_nms(
    boxes: Float[np.ndarray, "K 4"],
    scores: Float[np.ndarray, " K"],
    classes: Int[np.ndarray, " K"],
    threshold: float,
    limit: int | None = None,
) -> Int[np.ndarray, " M"]:
    """`nms` within each class, the kept boxes of all classes best score first.

    Classes are taken one by one; shifting each class's boxes apart by an offset would round the coordinates.
    """
    kept = [np.zeros(0, np.int64)]
    for one in np.unique(classes):
        members = np.flatnonzero(classes == one)
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    joined = np.sort(np.concatenate(kept))
    return joined[np.argsort(-scores[joined], kind="stable")][:limit]


def soft_nms(
    boxes: Float[np.ndarray, "K 4"], scores: Float[np.ndarray, " K"], decay: float, threshold: float, limit: int
) -> Int[np.ndarray, " M"]:
    """Indices of the boxes kept, in the order they are chosen, at most `limit` of them (Bodla et al., ICCV 2017, linear).

    Each time the best box is kept, the score of every box whose IoU with it is over `decay` is multiplied by 1 - IoU, and
    a box whose IoU is over `threshold` is dropped. Scores are at least 0; equal ones go by index, lower first.
    """
    left, score = boxes.astype(np.float64), scores.astype(np.float64)
    place, size, kept = np.arange(len(left)), area(left), list[int]()
    while len(kept) < limit and len(place):
        best = int(score.argmax())
        kept.append(int(place[best]))
        overlap = _overlap(left, size, np.array([best]), np.arange(len(left)))[0]
        score = np.where(overlap > decay, score * (1 - overlap), score)
        stays = overlap <= threshold
        stays[best] = False
        left, score, place, size = left[stays], score[stays], place[stays], size[stays]
    return np.array(kept, np.int64)


def blocked_nms(
    boxes: Float[np.ndarray, "K 4"], scores: Float[np.ndarray, " K"], threshold: float, limit: int
) -> Int[np.ndarray, " M"]:
    """Greedy suppression, a block of boxes at a time against those kept so far, then within the block."""
    order = np.argsort(-scores, kind="stable")
    ranked, size, most = boxes[order], area(boxes[order]), np.float64(threshold)
    kept: list[int] = []
    for start in range(0, len(order), BLOCK):
        if len(kept) >= limit:
            break
        block = np.arange(start, min(start + BLOCK, len(order)))
        for first in range(0, len(kept), BLOCK):
            some = np.array(kept[first : first + BLOCK])
            block = block[~(_overlap(ranked, size, some, block) > most).any(0)]
        within = _overlap(ranked, size, block, block) > most
        alive = np.ones(len(block), bool)
        for i in range(len(block)):
            if alive[i]:
                kept.append(int(block[i]))
                alive[i + 1 :] &= ~within[i, i + 1 :]
    return np.asarray(order[np.array(kept[:limit], np.int64)], np.int64)


def _overlap(
    boxes: Float[np.ndarray, "K 4"], size: Float[np.ndarray, " K"], a: Int[np.ndarray, " M"], b: Int[np.ndarray, " B"]
) -> Float[np.ndarray, "M B"]:
    """IoU of boxes a with boxes b, in the boxes' dtype; 0 where the union is empty."""
    width = np.minimum(boxes[a, None, 2], boxes[b, 2]) - np.maximum(boxes[a, None, 0], boxes[b, 0])
    height = np.minimum(boxes[a, None, 3], boxes[b, 3]) - np.maximum(boxes[a, None, 1], boxes[b, 1])
    inner = np.maximum(width, 0) * np.maximum(height, 0)
    union = size[a, None] + size[b] - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
