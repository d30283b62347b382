"""Zero-shot detection after RegionCLIP: boxes are classified by cosine with the classes' text vectors.

Letters: R regions, C classes, T templates, D embedding. Region boxes are xyxy in pixels, as everywhere else; detections
come out as COCO's x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from villa_dist.evaluate.detection import Detections
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.json_files import is_text, read_json, said
from villa_dist.evaluate.retrieval import similarity
from villa_dist.regions.boxes import iou
from villa_dist.regions.nms import nms

TEMPERATURE = 0.01
OBJECTNESS = ("probability", "logit", "raw_logit")


@dataclass(frozen=True)
class Protocol:
    """What RegionCLIP's evaluation does to scored boxes.

    objectness: what proposals carry. `logit` goes through a sigmoid. `raw_logit` is RegionCLIP's code for parity: the
    logit itself is multiplied in, and proposals with a negative one drop out (there the square root is NaN).
    """

    per_image: int = 100
    threshold: float = 0.001
    class_nms: float = 0.5
    proposal_nms: float = 0.9
    proposals: int = 1000
    objectness: str = "probability"
    temperature: float = TEMPERATURE


COCO = Protocol()
LVIS = Protocol(per_image=300, threshold=0.02)


@dataclass(frozen=True)
class ImageRegions:
    """Boxes of one image and their embeddings. objectness is None where the boxes are the true ones."""

    image: int
    boxes: Float[np.ndarray, "R 4"]
    embeddings: Float[np.ndarray, "R D"]
    objectness: Float[np.ndarray, " R"] | None = None


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Prompt templates from a JSON list of strings with one {} each. Raises: EvaluationError."""
    found = read_json(path, "prompt templates")
    if not isinstance(found, list) or not found:
        raise EvaluationError(f"{path}: prompt templates must be a list of strings")
    for template in found:
        if not is_text(template) or template.count("{}") != 1:
            raise EvaluationError(
                f"{path}: template {said(template)} must be a string with one {{}} for the class name"
            )
    return tuple(found)


def class_prompts(name: str, templates: Sequence[str]) -> list[str]:
    """Every template with the name in it; LVIS' `aerosol_can` and `bow_(weapon)` become `aerosol can`, `bow (weapon)`."""
    words = " ".join(name.replace("_", " ").split())
    return [template.replace("{}", words) for template in templates]


def class_vectors(
    names: Sequence[str], templates: Sequence[str], encode: Callable[[list[str]], Float[np.ndarray, "N D"]]
) -> Float[np.ndarray, "C D"]:
    """Unit mean of the unit embeddings of a class' prompts. encode: texts to embeddings, one class at a time.

    Raises: EvaluationError for embeddings that are not finite or of zero length.
    """
    return prompt_vectors([class_prompts(name, templates) for name in names], encode)


def prompt_vectors(
    prompts: Sequence[Sequence[str]], encode: Callable[[list[str]], Float[np.ndarray, "N D"]]
) -> Float[np.ndarray, "C D"]:
    """`class_vectors` of classes that have prompts of their own, at least one each."""
    return np.stack([ensemble(encode(list(texts))[None])[0] for texts in prompts])


def ensemble(prompts: Float[np.ndarray, "C T D"]) -> Float[np.ndarray, "C D"]:
    """Class vectors from the embeddings of each class' T prompts, which need not be of unit length."""
    return _unit(_unit(prompts).mean(1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise EvaluationError("an embedding holds NaN or infinity, or has no length")
    return vectors / length


def probabilities(
    region: Float[np.ndarray, "R D"], classes: Float[np.ndarray, "C D"], *, temperature: float = TEMPERATURE
) -> Float[np.ndarray, "R C"]:
    """Softmax of cosine / temperature over the classes and a background whose vector is zero, background left out.

    Raises: EvaluationError for embeddings that are not finite or of zero length.
    """
    if not len(region):
        return np.zeros((0, len(classes)))
    logits = similarity(_unit(region), _unit(classes)) / temperature
    top = np.maximum(logits.max(1, keepdims=True), 0.0)  # 0 is the background's logit
    weight = np.exp(logits - top)
    return weight / (weight.sum(1, keepdims=True) + np.exp(-top))


def detect(
    regions: ImageRegions,
    classes: Float[np.ndarray, "C D"],
    categories: Int[np.ndarray, " C"],
    protocol: Protocol = COCO,
) -> Detections:
    """Detections of one image, best first. categories: the id of each class vector.

    Without objectness (true boxes): the score is the class probability. With it: proposals go through NMS, the score is
    sqrt(probability x objectness). Then, both ways: scores above the threshold, NMS within each class, the best
    `per_image`.

    Raises: EvaluationError for shapes that do not fit, boxes or objectness that are not finite, boxes of negative size.
    """
    _check(regions, classes, categories, protocol)
    boxes, embeddings = regions.boxes.astype(np.float64), regions.embeddings
    weight = None
    if regions.objectness is not None:
        weight = objectness(regions.objectness, protocol.objectness)
        kept = nms(boxes, weight, protocol.proposal_nms)[: protocol.proposals]
        kept = kept[weight[kept] >= 0]
        boxes, embeddings, weight = boxes[kept], embeddings[kept], weight[kept]
    score = probabilities(embeddings, classes, temperature=protocol.temperature)
    if weight is not None:
        score = np.sqrt(score * weight[:, None])
    row, column = np.nonzero(score > protocol.threshold)
    value = score[row, column]
    kept = _class_nms(boxes, row, column, value, protocol.class_nms)[: protocol.per_image]
    x, y, right, bottom = boxes[row[kept]].T
    return Detections(
        np.full(len(kept), regions.image, np.int64),
        categories[column[kept]].astype(np.int64),
        np.stack([x, y, right - x, bottom - y], 1),
        value[kept],
    )


def _check(regions: ImageRegions, classes: np.ndarray, categories: np.ndarray, protocol: Protocol) -> None:
    where = f"image {regions.image}"
    n = len(regions.boxes)
    if regions.boxes.shape != (n, 4) or len(regions.embeddings) != n or classes.shape[0] != len(categories):
        raise EvaluationError(
            f"{where}: {regions.boxes.shape} boxes, {len(regions.embeddings)} embeddings, {len(classes)} class vectors "
            f"and {len(categories)} category ids do not fit together"
        )
    if not np.isfinite(regions.boxes).all() or (regions.boxes[:, 2:] < regions.boxes[:, :2]).any():
        raise EvaluationError(f"{where}: a box is not finite or of negative size; boxes are x1, y1, x2, y2")
    if protocol.objectness not in OBJECTNESS:
        raise EvaluationError(f"objectness is {protocol.objectness!r}; it must be one of {', '.join(OBJECTNESS)}")
    if regions.objectness is not None and (len(regions.objectness) != n or not np.isfinite(regions.objectness).all()):
        raise EvaluationError(f"{where}: {n} proposals need {n} finite objectness values")


def objectness(value: Float[np.ndarray, " R"], kind: str) -> Float[np.ndarray, " R"]:
    """What a class probability is multiplied with. Raises: EvaluationError for a probability outside [0, 1]."""
    value = value.astype(np.float64)
    if kind == "logit":
        return 0.5 * (1.0 + np.tanh(0.5 * value))  # the sigmoid, without overflow
    if kind == "probability" and len(value) and (value.min() < 0 or value.max() > 1):
        raise EvaluationError(
            f"objectness from {value.min():.3g} to {value.max():.3g} is no probability; if these are logits, say "
            "objectness=logit"
        )
    return value


def _class_nms(
    boxes: Float[np.ndarray, "R 4"],
    row: Int[np.ndarray, " K"],
    column: Int[np.ndarray, " K"],
    value: Float[np.ndarray, " K"],
    limit: float,
) -> Int[np.ndarray, " kept"]:
    """`nms` of each class, together, best first: overlaps of the boxes are computed once, not once a class."""
    clash = iou(boxes, boxes) > limit
    kept = []
    alive = np.ones((int(column.max(initial=-1)) + 1, len(boxes)), bool)
    for k in np.lexsort((row, column, -value)):
        mine = alive[column[k]]
        if mine[row[k]]:
            kept.append(k)
            mine &= ~clash[row[k]]
    return np.array(kept, np.int64)


def top_k(
    score: Float[np.ndarray, "R C"], label: Int[np.ndarray, " R"], ks: Sequence[int] = (1, 5)
) -> Float[np.ndarray, "R ks"]:
    """The chance that the right class is among the k best, ties by expectation; label: the column of the right class.

    The mean over true boxes is the accuracy newer papers report. Crowd boxes are left out by the caller.

    Raises: EvaluationError for scores that are not finite and labels out of range.
    """
    if not np.isfinite(score).all():
        raise EvaluationError("class scores hold NaN or infinity")
    if label.shape != (len(score),) or (len(label) and (label.min() < 0 or label.max() >= score.shape[1])):
        raise EvaluationError(f"{len(score)} boxes need as many labels, each a column of the {score.shape[1]} classes")
    right = score[np.arange(len(score)), label][:, None]
    above, tied = (score > right).sum(1), (score == right).sum(1)
    return np.stack([np.clip((k - above) / tied, 0.0, 1.0) for k in ks], 1)
