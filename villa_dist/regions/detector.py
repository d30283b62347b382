"""Any transformers object detector as a source of regions: its classes are left out, its boxes and one score are kept.

Images are prepared here with PIL and torch, so that neither torchvision nor an image processor's own guesses are in the
way (an image three pixels high is taken for channels-first by those). Images that come to the same size share a batch and
none is padded to another's, so a batch gives what single images give.

Letters: N images of a batch, Q queries, C classes, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from shards.errors import VillaError
from villa_dist.config import DetectorConfig
from villa_dist.regions.boxes import from_centers
from villa_dist.regions.proposals import Photo
from villa_dist.types import RegionSet

# Pixels: thinner inputs leave backbones without a feature map. Boxes are fractions, so the stretching is undone.
LEAST_INPUT = 64
READ = 1 << 24  # bytes at a time
GREY = 0.5  # what OWLv2 was trained to see beside an image
Raw = tuple[Float[Tensor, "N Q 4"], Float[Tensor, "N Q"]]  # boxes as centre and size in 0 to 1, scores


@dataclass(frozen=True)
class Family:
    """How a kind of detector is loaded and read. scores: what it can be asked for, the first is `auto`'s.

    square: the image fills the top left of a grey square, and boxes are fractions of that square.
    """

    loader: str
    scores: tuple[Literal["objectness", "max"], ...]
    run: Callable[[DetectorProposer, Float[Tensor, "N 3 H W"]], Raw]
    square: bool = False
    text: bool = False


@dataclass(frozen=True)
class Preparation:
    """What a checkpoint's preprocessor_config.json asks for. size: as transformers writes it."""

    size: dict[str, int]
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    resample: int = int(Image.Resampling.BILINEAR)


class DetectorProposer:
    needs_pixels = True
    ranked = True

    def __init__(
        self,
        model: Any,
        family: Family,
        preparation: Preparation,
        config: DetectorConfig,
        text: dict[str, Tensor] | None = None,
    ) -> None:
        if config.score != "auto" and config.score not in family.scores:
            raise VillaError(
                f"regions.hf.score={config.score} is not something {type(model).__name__} has; set regions.hf.score="
                f"{family.scores[0]}"
            )
        self.score = family.scores[0] if config.score == "auto" else config.score
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(chosen if config.device == "auto" else config.device)
        self.model = model.to(self.device).eval()
        self.family, self.preparation, self.batch = family, preparation, config.batch_images
        self.text = {name: value.to(self.device) for name, value in (text or {}).items()}

    def propose(self, photos: Sequence[Photo]) -> list[RegionSet]:
        """Boxes of each photo; those of one input size are run together. Raises: VillaError when the model fails."""
        ready = [self._prepared(photo) for photo in photos]
        groups: dict[tuple[int, ...], list[int]] = {}
        for n, (_, pixels) in enumerate(ready):
            groups.setdefault(tuple(pixels.shape), []).append(n)
        found: dict[int, RegionSet] = {}
        for members in groups.values():
            for start in range(0, len(members), self.batch):
                some = members[start : start + self.batch]
                boxes, scores = self._run(torch.stack([ready[n][1] for n in some]))
                for k, n in enumerate(some):
                    found[n] = RegionSet(boxes[k] * ready[n][0], scores[k])
        return [found[n] for n in range(len(photos))]

    def _run(self, pixels: Float[Tensor, "N 3 H W"]) -> tuple[Float[np.ndarray, "N Q 4"], Float[np.ndarray, "N Q"]]:
        """(boxes xyxy as fractions of the input, scores)."""
        try:
            with torch.inference_mode():
                boxes, scores = self.family.run(self, pixels.to(self.device))
        except (RuntimeError, ValueError) as error:
            height, width = pixels.shape[-2:]
            raise VillaError(
                f"the detector {type(self.model).__name__} failed on {len(pixels)} inputs of {width}x{height}: "
                f"{' '.join(str(error).split())[:300]}; lower regions.hf.batch_images or regions.hf.size, "
                "or use another model"
            ) from error
        flat = from_centers(boxes.float().cpu().numpy().reshape(-1, 4))
        return flat.reshape(*boxes.shape).astype(np.float32), scores.float().cpu().numpy()

    def _prepared(self, photo: Photo) -> tuple[Float[np.ndarray, " 4"], Float[Tensor, "3 H W"]]:
        """(pixels of the photo in one unit of its boxes' x, y, x, y, the network's input)."""
        assert photo.pixels is not None
        prepare = self.preparation
        width, height = input_size(prepare.size, photo.width, photo.height, square=self.family.square)
        small = Image.fromarray(photo.pixels).resize((width, height), Image.Resampling(prepare.resample))
        values = np.asarray(small, np.float32) * np.float32(prepare.scale)
        unit_x, unit_y = float(photo.width), float(photo.height)
        if self.family.square:
            side_x, side_y = prepare.size["width"], prepare.size["height"]
            beside = ((0, side_y - height), (0, side_x - width), (0, 0))
            values = np.pad(values, beside, constant_values=GREY)
            unit_x, unit_y = unit_x * side_x / width, unit_y * side_y / height
        mean, deviation = np.array(prepare.mean, np.float32), np.array(prepare.deviation, np.float32)
        values = ((values - mean) / deviation).astype(np.float32)
        unit = np.array([unit_x, unit_y, unit_x, unit_y], np.float32)
        return unit, torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def input_size(size: dict[str, int], width: int, height: int, *, square: bool = False) -> tuple[int, int]:
    """(width, height) an image is resized to: fixed, by its edges, or (`square`) to fit a square at its own aspect."""
    if square:
        ratio = min(size["width"] / max(width, height), size["height"] / max(width, height))
        return max(1, round(width * ratio)), max(1, round(height * ratio))
    if "height" in size and "width" in size:
        return size["width"], size["height"]
    short, long = min(width, height), max(width, height)
    if "max_height" in size and "max_width" in size:
        edge = short * min(size["max_height"] / height, size["max_width"] / width)
    else:  # rounded as transformers does
        edge = min(size["shortest_edge"], size.get("longest_edge", 1 << 30) * short / long)
    sides = max(LEAST_INPUT, round(edge)), max(LEAST_INPUT, int(edge * long / short))
    return sides if width <= height else (sides[1], sides[0])


# ---- the families: from the network's input to normalised boxes and one score


def _softmax_detector(proposer: DetectorProposer, pixels: Tensor) -> Raw:
    """DETR: the last class is "no object"."""
    out = proposer.model(pixel_values=pixels)
    chance = out.logits.float().softmax(-1)
    return out.pred_boxes, 1 - chance[..., -1] if proposer.score == "objectness" else chance[..., :-1].amax(-1)


def _sigmoid_detector(proposer: DetectorProposer, pixels: Tensor) -> Raw:
    out = proposer.model(pixel_values=pixels)
    return out.pred_boxes, out.logits.float().sigmoid().amax(-1)


def _text_detector(proposer: DetectorProposer, pixels: Tensor) -> Raw:
    """GroundingDINO: the best of the prompt's tokens; places beyond them are minus infinity."""
    text = {name: value.expand(len(pixels), -1) for name, value in proposer.text.items()}
    out = proposer.model(pixel_values=pixels, **text)
    return out.pred_boxes, out.logits.float().sigmoid().amax(-1)


def _objectness_detector(proposer: DetectorProposer, pixels: Tensor) -> Raw:
    """OWLv2: its objectness head, which needs no text; positions are interpolated where `size` differs."""
    model = proposer.model
    maps = model.image_embedder(pixel_values=pixels, interpolate_pos_encoding=True)[0]
    places = maps.flatten(1, 2)
    boxes = model.box_predictor(places, maps, interpolate_pos_encoding=True)
    return boxes, model.objectness_predictor(places).float().sigmoid()


AUTO = "AutoModelForObjectDetection"
_SOFTMAX = Family(AUTO, ("objectness", "max"), _softmax_detector)
_SIGMOID = Family(AUTO, ("max",), _sigmoid_detector)
FAMILIES: dict[str, Family] = {
    "detr": _SOFTMAX,
    "table-transformer": _SOFTMAX,
    "yolos": _SOFTMAX,
    "conditional_detr": _SIGMOID,
    "deformable_detr": _SIGMOID,
    "d_fine": _SIGMOID,
    "rt_detr": _SIGMOID,
    "rt_detr_v2": _SIGMOID,
    "grounding-dino": Family("AutoModelForZeroShotObjectDetection", ("max",), _text_detector, text=True),
    "owlv2": Family("Owlv2ForObjectDetection", ("objectness",), _objectness_detector, square=True),
}


# ---- loading


def load_detector(config: DetectorConfig) -> DetectorProposer:
    """Raises: VillaError when the folder is missing, holds no detector, or lacks weights; the message says which."""
    import transformers
    from transformers.utils import logging

    place = config.model
    assert place is not None
    shown = f"regions.hf.model={place!r}"
    if _is_local(place) and not Path(place).is_dir():
        raise VillaError(
            f"{shown} is not a folder; give the folder save_pretrained wrote, or a hub id such as owner/name"
        )
    logging.disable_progress_bar()
    source = {"revision": config.revision} if config.revision else {}
    try:
        settings = transformers.AutoConfig.from_pretrained(place, **source)
    except (OSError, ValueError) as error:
        raise VillaError(
            f"{shown} has no config that transformers can read: {_first_line(error)}; give a local folder with "
            "config.json, or a hub id this machine can reach"
        ) from error
    family = FAMILIES.get(settings.model_type)
    if family is None:
        raise VillaError(
            f"{shown} is no object detector that is known here: its config is a {type(settings).__name__} "
            f"(model_type {settings.model_type!r}); known are {', '.join(FAMILIES)}"
        )
    try:
        loader = getattr(transformers, family.loader)
        model, told = loader.from_pretrained(place, output_loading_info=True, dtype=torch.float32, **source)
        prepared = _preparation(transformers.AutoImageProcessor.from_pretrained(place, **source), config.size)
        text = _prompt(place, config, source) if family.text else None
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise VillaError(f"{shown} ({type(settings).__name__}) cannot be loaded: {_first_line(error)}") from error
    if told["missing_keys"]:
        some = ", ".join(sorted(told["missing_keys"])[:3])
        raise VillaError(
            f"{shown} lacks {len(told['missing_keys'])} weights of a {type(model).__name__} ({some}, …), which would be "
            "random; give a checkpoint of the whole detector"
        )
    return DetectorProposer(model, family, prepared, config, text)


def identity(config: DetectorConfig) -> str:
    """What a run's regions are bound to: the files of a local checkpoint, or the hub id and revision."""
    assert config.model is not None
    folder = Path(config.model)
    if not folder.is_dir():
        return f"{config.model}@{config.revision or 'main'}"
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while part := opened.read(READ):
                digest.update(part)
    return digest.hexdigest()


def _preparation(processor: Any, size: int | None) -> Preparation:
    """The settings of a loaded image processor; `size` replaces the square or the shorter edge, at the same proportions."""
    asked = {k: int(v) for k, v in dict(processor.size).items() if v is not None}
    if size is not None:
        if "shortest_edge" in asked:
            ratio = asked.get("longest_edge", 0) / asked["shortest_edge"]
            asked = {"shortest_edge": size, **({"longest_edge": round(size * ratio)} if ratio else {})}
        else:
            asked = dict.fromkeys(asked, size)
    plain = Preparation(asked)
    return Preparation(
        asked,
        float(processor.rescale_factor) if processor.do_rescale else 1.0,
        tuple(processor.image_mean) if processor.do_normalize else plain.mean,
        tuple(processor.image_std) if processor.do_normalize else plain.deviation,
        int(processor.resample) if processor.resample is not None else plain.resample,
    )


def _prompt(place: str, config: DetectorConfig, source: dict[str, str]) -> dict[str, Tensor]:
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(place, **source)([config.prompt], return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "token_type_ids", "attention_mask") if name in tokens}


def _is_local(place: str) -> bool:
    """Whether a name can only be a path: a hub id is `name` or `owner/name`."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
