"""Photos with captions and boxes, as mapping sees them: what each photo's captions mention, its boxes, and which are true.

Letters: V vocabulary (COCO's 80 names), R regions of one photo, P true pairs of one photo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.attributes.lists import read_list
from villa_dist.attributes.phrases import Phrase, merge
from villa_dist.config import RegionsConfig
from villa_dist.evaluate.mapping_quality import of_mentioned
from villa_dist.regions.backends import make_proposer
from villa_dist.regions.proposals import Photo, regions_of
from villa_dist.types import RegionAttributePairs

PROPOSED = 50  # regions a photo


@dataclass(frozen=True)
class CaptionedPhoto:
    """boxes: all that are annotated, xyxy in pixels, crowds left out, with the vocabulary id of each; mentions: ids that
    its captions mention, ascending."""

    path: Path
    width: int
    height: int
    boxes: Float[np.ndarray, "R 4"]
    category: Int[np.ndarray, " R"]
    mentions: Int[np.ndarray, " a"]

    @property
    def truth(self) -> RegionAttributePairs:
        """The boxes whose category is mentioned."""
        return of_mentioned(self.boxes, self.category, self.mentions)


@dataclass(frozen=True)
class Regions:
    """Of one photo, best first where `objectness` is known, else in the order of the annotation."""

    boxes: Float[np.ndarray, "R 4"]
    objectness: Float[np.ndarray, " R"] | None = None


def vocabulary(data: Path, synonyms: bool = True) -> tuple[Phrase, ...]:
    """COCO's names in COCO's order; synonyms: those that LVIS gives for the same WordNet sense."""
    named = json.loads((data / "natural/annotations.json").read_text())["categories"]
    lvis = data / "lvis/lvis_v1_categories.json"
    senses = [c["synset"] for c in json.loads(lvis.read_text())]
    said = dict(zip(senses, read_list(str(lvis)).phrases, strict=True))
    sense_of = json.loads((data / "lvis/coco_to_synset.json").read_text())
    phrases = []
    for name in (c["name"] for c in named):
        same = said.get(sense_of[name]["synset"]) if synonyms else None
        phrases.append(Phrase(name, synonyms=(same.phrase, *same.synonyms) if same else ()))
    return merge([phrases]).phrases


def photos(data: Path, phrases: Sequence[Phrase], limit: int | None = None) -> list[CaptionedPhoto]:
    """The photos of `natural/` that have captions, by id."""
    instances = json.loads((data / "natural/annotations.json").read_text())
    matcher = PhraseMatcher([p.phrase for p in phrases], [p.synonyms for p in phrases])
    said: dict[int, set[int]] = {}
    for caption in json.loads((data / "natural/captions.json").read_text())["annotations"]:
        said.setdefault(caption["image_id"], set()).update(matcher.find(caption["caption"]))
    place = {c["id"]: i for i, c in enumerate(instances["categories"])}
    boxed: dict[int, list[tuple[list[float], int]]] = {}
    for one in instances["annotations"]:
        x, y, w, h = one["bbox"]
        if not one.get("iscrowd") and w > 0 and h > 0:
            boxed.setdefault(one["image_id"], []).append(([x, y, x + w, y + h], place[one["category_id"]]))
    made = []
    for image in sorted((i for i in instances["images"] if i["id"] in said), key=lambda i: i["id"])[:limit]:
        own = boxed.get(image["id"], [])
        made.append(
            CaptionedPhoto(
                data / "natural/images" / image["file_name"],
                image["width"],
                image["height"],
                np.array([b for b, _ in own], np.float32).reshape(-1, 4),
                np.array([c for _, c in own], np.int64),
                np.array(sorted(said[image["id"]]), np.int64),
            )
        )
    return made


def pixels_of(photo: CaptionedPhoto) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(Image.open(photo.path).convert("RGB"))


def annotated(photo: CaptionedPhoto) -> Regions:
    return Regions(photo.boxes)


def proposed(photo: CaptionedPhoto, pixels: UInt8[np.ndarray, "H W 3"]) -> Regions:
    """The best PROPOSED boxes of `segments`."""
    config = RegionsConfig(proposals="segments", top_k=PROPOSED)
    shown = Photo(photo.path.stem, photo.width, photo.height, pixels)
    found = regions_of(make_proposer(config), config, [shown])[0].regions
    return Regions(found.boxes, found.objectness)


def said_and_boxed(photos: Sequence[CaptionedPhoto]) -> dict[str, float]:
    """How far mentions and boxes tell of the same things, and how many pairs there are, over all photos."""
    both = sum(len(np.intersect1d(p.mentions, p.category)) for p in photos)
    said, kinds = sum(len(p.mentions) for p in photos), sum(len(np.unique(p.category)) for p in photos)
    pairs = [p.truth.attribute for p in photos]
    return {
        "photos": len(photos),
        "boxes": sum(len(p.boxes) for p in photos),
        "mentions": said,
        "boxed_of_mentions": both / max(said, 1),
        "mentioned_of_kinds": both / max(kinds, 1),
        "pairs": sum(len(a) for a in pairs),
        "person_pairs": float(sum((a == 0).sum() for a in pairs)),
        "attributes": len(np.unique(np.concatenate([p.mentions for p in photos]))),
    }
