"""Region features of photos: of a small pretrained network, of colour and texture alone, of the box alone.

The network is ShuffleNetV2 x0.5 (arXiv 1807.11164) from its state dict, as FastestDet's detector has it or as the classifier
that the detector was started from.

Letters: N images, C channels, H x W map, R regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from villa_dist.config import SegmentsConfig
from villa_dist.regions.segments import COLOURS, STRENGTHS, TURNS, reduced
from villa_dist.roi_align import roi_align

SIDE = 352  # what the detector was trained at: photos are stretched to it
DETECTOR, CLASSIFIER = "weight_AP05_0.253207_280-epoch.pth", "shufflenetv2_backbone.pth"
State = Mapping[str, Tensor]


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """A state dict whose backbone's names begin with "backbone."."""
    state = torch.load(folder / name, map_location="cpu", weights_only=True)
    return state if name == DETECTOR else {f"backbone.{k}": v for k, v in state.items()}


def network_input(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "1 3 S S"]:
    """Blue first, 0 to 1, stretched to a square."""
    square = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(square)[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255


def convolved(state: State, name: str, norm: str, x: Float[Tensor, "N C H W"], stride: int = 1) -> Tensor:
    """A convolution without bias, of so many groups as its weight implies, and the batch norm after it."""
    kernel = state[f"{name}.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=x.shape[1] // kernel.shape[1])
    mean, variance, weight, bias = (state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, variance, weight, bias)


def block(state: State, name: str, x: Float[Tensor, "N C H W"], *, first: bool) -> Tensor:
    """The first block of a stage halves the map; in the others every second channel passes through as it is."""
    if first:
        passed = convolved(state, f"{name}.branch_proj.0", f"{name}.branch_proj.1", x, 2)
        passed = F.relu(convolved(state, f"{name}.branch_proj.2", f"{name}.branch_proj.3", passed))
    else:
        passed, x = x[:, 0::2], x[:, 1::2]
    main = f"{name}.branch_main"
    x = F.relu(convolved(state, f"{main}.0", f"{main}.1", x))
    x = convolved(state, f"{main}.3", f"{main}.4", x, 2 if first else 1)
    x = F.relu(convolved(state, f"{main}.5", f"{main}.6", x))
    return torch.cat([passed, x], 1)


def stages(state: State, x: Float[Tensor, "N 3 S S"]) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of 48, 96 and 192 channels at strides 8, 16 and 32."""
    x = F.relu(convolved(state, "backbone.first_conv.0", "backbone.first_conv.1", x, 2))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, blocks in (("stage2", 4), ("stage3", 8), ("stage4", 4)):
        for n in range(blocks):
            x = block(state, f"backbone.{stage}.{n}", x, first=n == 0)
        maps.append(x)
    return maps[0], maps[1], maps[2]


def detector_neck(state: State, maps: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, "N 96 H W"]:
    """The map at stride 16 that the detector's heads share."""
    fine, middle, coarse = maps
    x = torch.cat([F.avg_pool2d(fine, 3, 2, 1), middle, F.interpolate(coarse, scale_factor=2.0)], 1)
    x = F.relu(convolved(state, "SPP.Conv1x1.conv1x1.0", "SPP.Conv1x1.conv1x1.1", x))
    ways = []
    for way in (1, 2, 3):
        y = x
        for n in range(0, 3 * way, 3):
            y = F.relu(convolved(state, f"SPP.S{way}.{n}", f"SPP.S{way}.{n + 1}", y))
        ways.append(y)
    return F.relu(x + convolved(state, "SPP.output.0", "SPP.output.1", torch.cat(ways, 1)))


def detector_outputs(state: State, x: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N 85 H W"]:
    """Objectness, four numbers of a box, and probabilities of 80 classes, as the detector's ONNX file gives them."""
    y = detector_neck(state, stages(state, x))
    y = F.relu(convolved(state, "detect_head.conv1x1.conv1x1.0", "detect_head.conv1x1.conv1x1.1", y))
    parts = []
    for name in ("obj", "reg", "cls"):
        own = f"detect_head.{name}_layers.conv5x5"
        parts.append(convolved(state, f"{own}.3", f"{own}.4", F.relu(convolved(state, f"{own}.0", f"{own}.1", y))))
    return torch.cat([parts[0].sigmoid(), parts[1], parts[2].softmax(1)], 1)


def pooled(
    maps: tuple[Tensor, ...], boxes: Float[np.ndarray, "R 4"], width: int, height: int
) -> Float[np.ndarray, "R C"]:
    """RoIAlign of every map, one bin, side by side. boxes: of the photo of width x height."""
    scale = torch.tensor([SIDE / width, SIDE / height] * 2)
    square = torch.from_numpy(boxes.astype(np.float32)) * scale
    first = torch.zeros(len(boxes), dtype=torch.int64)
    each = [roi_align(m, square, first, bins=1, scale=m.shape[-1] / SIDE, samples=4).flatten(1) for m in maps]
    return torch.cat(each, 1).numpy()


def geometry(boxes: Float[np.ndarray, "R 4"], width: int, height: int) -> Float[np.ndarray, "R 6"]:
    """Centre, width and height in parts of the photo, log area, log aspect."""
    low, high = boxes[:, :2] / (width, height), boxes[:, 2:] / (width, height)
    size = np.maximum(high - low, 1e-3)
    logs = np.stack([np.log(size.prod(1)), np.log(size[:, 0] * width / (size[:, 1] * height))], 1)
    return np.concatenate([(low + high) / 2, size, logs], 1).astype(np.float32)


def looks(pixels: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "R 4"]) -> Float[np.ndarray, "R F"]:
    """Histograms of colour over the box, and of gradients over its quarters: what `segments` tells segments apart by."""
    small = reduced(pixels, SegmentsConfig().side)
    height, width = small.edges.shape
    ratio = np.array([width / pixels.shape[1], height / pixels.shape[0]] * 2)
    colour = np.clip(small.lab * (COLOURS / 256), 0, COLOURS - 1).astype(np.int64) + COLOURS * np.arange(3)
    made = np.zeros((len(boxes), 3 * COLOURS + 4 * TURNS * STRENGTHS), np.float32)
    for row, box in zip(made, boxes * ratio, strict=True):
        x0, y0 = np.minimum(box[:2].astype(int), (width - 1, height - 1))
        x1, y1 = np.maximum(np.ceil(box[2:]).astype(int), (x0 + 1, y0 + 1))
        inside = colour[y0:y1, x0:x1]
        row[: 3 * COLOURS] = np.bincount(inside.ravel(), minlength=3 * COLOURS) / inside[..., 0].size
        turn = small.turn[y0:y1, x0:x1]
        quarters = [q for half in np.array_split(turn, 2, 0) for q in np.array_split(half, 2, 1)]
        found = [np.bincount(q.ravel(), minlength=TURNS * STRENGTHS) / max(q.size, 1) for q in quarters]
        row[3 * COLOURS :] = np.concatenate(found)
    return np.sqrt(made)


def features(
    pixels: UInt8[np.ndarray, "H W 3"],
    boxes: Mapping[str, Float[np.ndarray, "R 4"]],
    states: Mapping[str, State],
) -> dict[tuple[str, str], Float[np.ndarray, "R F"]]:
    """By (kind of regions, kind of features); all but `box` hold the box's geometry too."""
    height, width = pixels.shape[:2]
    made = {}
    with torch.inference_mode():
        maps = {name: stages(state, network_input(pixels)) for name, state in states.items()}
        for kind, own in boxes.items():
            place = geometry(own, width, height)
            made[kind, "box"] = place
            made[kind, "looks"] = np.concatenate([looks(pixels, own), place], 1)
            for name, found in maps.items():
                made[kind, name] = np.concatenate([pooled(found, own, width, height), place], 1)
    return made
