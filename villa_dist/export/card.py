"""The model card of an exported folder: README.md with the header the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from villa_dist import __version__
from villa_dist.trained import Trained, metrics
from villa_dist.vlm.model import RegionVLM

TOWERS = {
    "conv": "a small convolutional tower trained from scratch",
    "clip_rn50": "CLIP's ResNet",
    "hf": "a vision transformer of the transformers library",
}
TEXTS = {
    "conv": "a tower of hashed words trained from scratch, which ignores word order",
    "clip_rn50": "CLIP's text transformer",
    "hf": "the checkpoint's own text transformer",
}
FILL = "*to be filled in by who publishes it*"


def text(trained: Trained, loads_with: list[str]) -> str:
    """Markdown. licence: left open, since it follows from the data and from the checkpoint the model started from."""
    vlm = trained.vlm
    header = {"library_name": "transformers", "pipeline_tag": "zero-shot-image-classification"}
    tags = ["vision-language", "region-level", "contrastive", "villa"]
    front = yaml.safe_dump({**header, "tags": tags}, sort_keys=False)
    parts = [
        f"---\n{front}# license: fill in before publishing\n---",
        f"# {trained.title}",
        what(trained),
        "## How to load it\n\n" + how(vlm, loads_with),
        "## Training data\n\n" + data(trained),
        "## Model\n\n" + model(trained),
        "## Measured\n\n" + measured(metrics(trained)),
        "## Whole images\n\n" + whole(vlm),
        "## Limits\n\n" + limits(vlm),
        f"## Licence\n\n{FILL}. It follows from the licences of the training data and of the checkpoint it started from; "
        "the licence of the software that trained it says nothing of it.",
        "## Method\n\nViLLA (Varma et al., ICCV 2023, arXiv 2308.11194): a mapping model assigns the attributes that a "
        "text mentions to regions of its image; a contrastive model is trained on these region-attribute pairs.",
    ]
    return "\n\n".join(parts) + "\n"


def what(trained: Trained) -> str:
    roles = {
        "one_to_one": "trained on whole images with whole texts (the one-to-one baseline)",
        "villa": "trained on region-attribute pairs that a mapping model found",
        "ground_truth": "trained on known region-attribute pairs",
    }
    role = roles.get(trained.job or "", "from a published checkpoint" if trained.job is None else "trained on pairs")
    at = (
        f", after {trained.step:,} steps (a checkpoint from the middle of training)" if trained.step is not None else ""
    )
    return (
        f"A region-level vision-language model {role}{at}. It embeds whole images, boxes in them and texts in one space of "
        f"{trained.vlm.dim} dimensions, so that a box can be found by a text and the other way round. Written by "
        f"villa_dist {__version__}."
    )


def how(vlm: RegionVLM, loads_with: list[str]) -> str:
    own = """With regions, by the code in this folder (`modeling_villa.py`; it needs torch and transformers):

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("THIS FOLDER", trust_remote_code=True)
image = Image.open("photo.jpg").convert("RGB")
boxes = [[10, 20, 110, 220]]                             # x1, y1, x2, y2 in pixels
model.embed_image([image])                               # 1 x D, unit length
model.embed_regions(image, boxes)                        # R x D
model.embed_text(["a red umbrella"])                     # T x D
model.score(image, boxes, ["a red umbrella", "a dog"])   # R x T cosines
```

With the package that trained it: `villa_dist.RegionVLM.from_pretrained("THIS FOLDER")`, the same four methods."""
    if len(loads_with) == 1:
        return own
    name = loads_with[0]
    plain = f"""Whole images and texts, by transformers alone, with no other code:

```python
from transformers import AutoImageProcessor, AutoTokenizer, {name}

model = {name}.from_pretrained("THIS FOLDER")
images = AutoImageProcessor.from_pretrained("THIS FOLDER")(image, return_tensors="pt")
texts = AutoTokenizer.from_pretrained("THIS FOLDER")(["a dog"], {_padding(vlm)}, truncation=True, return_tensors="pt")
model.get_image_features(**images), model.get_text_features(**texts)   # not of unit length
```"""
    return f"{plain}\n\n{own}"


def _padding(vlm: RegionVLM) -> str:
    assert vlm.published is not None
    return "padding=True" if vlm.published.family == "clip" else 'padding="max_length"'


def data(trained: Trained) -> str:
    settings = run_config(trained)
    if not settings:
        return FILL
    source = settings.get("data", {})
    if source.get("source") == "docmnist":
        target = settings.get("docmnist", {}).get("target")
        return f"DocMNIST, generated: images of nine places with digits, of target complexity {target}."
    name = Path(str(source.get("train") or "")).name
    lists = settings.get("vocabulary", {}).get("lists") or []
    listed = f" Attributes came from {', '.join(Path(str(n)).name for n in lists)}." if lists else ""
    return f"Image-text shards (`{name}`).{listed} Where they came from and under which terms: {FILL}."


def run_config(trained: Trained) -> dict[str, Any]:
    if trained.run is None:
        return {}
    try:
        found = yaml.safe_load((Path(trained.run) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def model(trained: Trained) -> str:
    vlm, settings = trained.vlm, run_config(trained)
    kind, image = vlm.config.image.kind, vlm.config.image
    rows = {
        "image tower": TOWERS[kind],
        "text tower": TEXTS[kind],
        "dimensions": vlm.dim,
        "parameters": f"{sum(p.numel() for p in vlm.parameters()):,}",
        "scale of the logits": f"{float(vlm.scale.detach()):.2f}",
        "regions": "RoIAlign on one map of the whole image"
        if image.regions == "dense"
        else "each box as its own image",
    }
    if vlm.published:
        rows["started from"] = Path(vlm.config.weights or "").name or "a published checkpoint"
    section = {"one_to_one": "pretrain"}.get(trained.job or "", "train")
    names = ("steps", "epochs", "batch_images", "learning_rate", "weight_decay", "warmup_steps", "seed")
    job = {**settings.get(section, {}), "seed": settings.get("seed")}
    rows |= {name.replace("_", " "): job[name] for name in names if job.get(name) is not None}
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def measured(found: Mapping[str, Any]) -> str:
    if not found:
        return "Nothing was measured of these weights."
    lines = ["R-Precision on known regions, in percent.", "", "| split | text to region | region to text | regions |"]
    lines.append("|---|---|---|---|")
    for split, values in found.items():
        lines.append(f"| {split} | {values.get('a2r')} | {values.get('r2a')} | {values.get('regions', '')} |")
    return "\n".join(lines)


def whole(vlm: RegionVLM) -> str:
    """How a whole image is embedded, and how that differs from a region and from the library's own model."""
    kind = vlm.config.image.kind
    if kind == "conv":
        return """\
A whole image goes through the region head at every place, and the places are averaged by how active they are. Pixels are
taken as they are, so images should have the size of those it was trained on."""
    if kind == "clip_rn50":
        return """\
A whole image is prepared as CLIP does (shorter side resized, centre cut out) and embedded by the attention pooling. A region
goes through RoIAlign on layer3's map, layer4 and the same pooling; the region over a whole image equals the image where the
input has the trained size."""
    assert vlm.published is not None
    family = vlm.published.family
    pooled = "the attention pooling of whole images, over the places in the box"
    if family == "clip":
        what = "values (MaskCLIP)" if vlm.config.image.values else "tokens"
        pooled = f"the mean of the last layer's {what} in the box, not by the class token that pools a whole image"
    bias = "`logit_bias` is 0: a sigmoid loss keeps its bias to the training job, so a sigmoid of logits is no probability."
    return f"""\
For whole images and texts this is the library's own model: preprocessing, pooling and projection are the same. Two things
differ. `embed_image` and `embed_text` return unit length, `get_image_features` and `get_text_features` do not. The library
resizes with PIL and the code here with torch, to within 2 of 255 levels. {"" if family == "clip" else bias}

A region is embedded otherwise than a whole image: all of the image is the input, in its own shape, without the centre crop,
and a box is embedded by {pooled}."""


def limits(vlm: RegionVLM) -> str:
    lines = [
        "- It knows what its training texts mention; a score ranks boxes and texts and is no probability that something is "
        "there.",
        "- It was not examined for bias, nor for use in decisions about people, medical ones included.",
        "- `embed_*` of the code in this folder convert images by `convert('RGB')`: 16-bit greys are clipped, which spoils "
        "radiographs, transparency is dropped and a photo's orientation tag is ignored. `villa_dist` handles all three.",
    ]
    if vlm.config.image.kind == "conv":
        lines.append("- The towers are small and were made for generated images.")
    return "\n".join(lines)
