"""Reading CLIP, SigLIP and SigLIP 2 from a transformers folder or the hub, as data.

Configs and tensors are read here; model classes are the library's own, never a checkpoint's (`trust_remote_code` is off).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.errors import VillaError
from villa_dist.config import ModelConfig
from villa_dist.config_base import HUB_ID
from villa_dist.encoders.openai import read_tensors
from villa_dist.encoders.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from villa_dist.encoders.published import Family, Published
from villa_dist.encoders.tokenizer import TextTokenizer
from villa_dist.observe import LOG

FAMILIES: dict[str, Family] = {"clip": "clip", "siglip": "siglip", "siglip2": "siglip2"}
HUB_SECONDS = 10.0
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, which image processors use
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def read_hf(config: ModelConfig) -> Published:
    """Raises: VillaError naming what is missing or wrong, and the remedy."""
    assert config.weights is not None
    folder = local_folder(config.weights, config.revision)
    settings = read_json(folder / "config.json")
    family = family_of(settings, folder)
    architecture = library_config(family, settings, folder)
    text = architecture["text_config"]
    if not architecture["vision_config"].get("vision_use_head", True):
        raise VillaError(
            f"model.weights: {folder} is a {family} without its pooling head (vision_use_head: false), which embeds images "
            "and regions; use a checkpoint that has it"
        )
    state = read_state(folder)
    weights, scale = own_names(state), float(state.get("logit_scale", torch.tensor(4.6052)))
    return Published(
        family,
        architecture,
        preprocess_of(folder, family, architecture["vision_config"]),
        int(architecture["projection_dim"] if family == "clip" else text["projection_size"]),
        scale,
        tokenizer_of(folder, family, int(text["max_position_embeddings"]), int(text["vocab_size"])),
        {n: t.to(torch.float32) for n, t in weights.items()},
    )


def local_folder(weights: str, revision: str | None) -> Path:
    """The folder of a path or hub id; a hub id is fetched, or found in the local cache without a network."""
    path = Path(weights)
    if path.is_dir():
        return path
    if path.exists():
        raise VillaError(
            f"model.weights: {weights} is a file; image.kind=hf takes a transformers folder (with config.json)"
        )
    if not HUB_ID.fullmatch(weights):
        raise VillaError(
            f"model.weights: folder {weights} does not exist; give a transformers folder, or a hub id org/name"
        )
    return _fetched(weights, revision)


def _fetched(name: str, revision: str | None) -> Path:
    """From the hub, or from the local cache where the hub does not answer within HUB_SECONDS."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(at: str | None, wanted: list[str], cached: bool) -> Path:
        return Path(
            snapshot_download(
                name, revision=at, allow_patterns=wanted, etag_timeout=HUB_SECONDS, local_files_only=cached
            )
        )

    def failed(error: Exception) -> VillaError:
        said = str(error).strip().splitlines()
        at = f" at revision {revision}" if revision else ""
        return VillaError(
            f"model.weights: {name} is no folder here, and it could not be fetched from the hub{at} "
            f"({said[0] if said else type(error).__name__}). Check the name and the network, or fetch it elsewhere "
            f"(`hf download {name} --local-dir DIR`) and set model.weights to that folder"
        )

    try:  # snapshot_download itself would wait for an answer for ever
        commit = HfApi().repo_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except (HfHubHTTPError, ValueError) as error:  # no such repository or revision, no access
        raise failed(error) from error
    except Exception as error:  # noqa: BLE001  no connection: which error says so depends on the hub's HTTP library
        try:
            return fetch(revision, WANTED, True)
        except (OSError, ValueError):
            raise failed(error) from error
    try:
        folder = fetch(commit, WANTED, False)
        if not any(folder.glob("*.safetensors")):
            folder = fetch(commit, [*WANTED, "pytorch_model*.bin"], False)
    except Exception as error:
        raise failed(error) from error
    return folder


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VillaError(
            f"{path.parent} has no {path.name}; give a transformers folder of a CLIP or SigLIP model, as "
            "save_pretrained writes it"
        ) from None
    except (OSError, ValueError) as error:
        raise VillaError(f"{path} is damaged ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise VillaError(f"{path} holds no object; fetch it again")
    return values


def family_of(settings: Mapping[str, Any], folder: Path) -> Family:
    kind = settings.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    named = ", ".join(map(str, settings.get("architectures") or [])) or "no architecture"
    code = "; its config asks to run code of its own, which is never done" if "auto_map" in settings else ""
    raise VillaError(
        f"model.weights: {folder} is {named} (model_type {kind!r}){code}; image.kind=hf takes models with both towers of "
        f"type {', '.join(FAMILIES)}"
    )


def library_config(family: Family, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The library's whole config as JSON, defaults filled in."""
    from villa_dist.encoders.hf_library import config_class

    try:
        plain = {k: v for k, v in settings.items() if k not in ("auto_map", "_name_or_path")}
        found: dict[str, Any] = config_class(family).from_dict(plain).to_dict()
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]
    except Exception as error:
        raise VillaError(f"{folder / 'config.json'} is no {family} config ({_said(error)}); fetch it again") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the tensors: safetensors if there are any, else PyTorch's.

    Raises: VillaError when there are none, or one that the index names is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted({Path(str(n)).name for n in read_json(index).get("weight_map", {}).values()})
            gone = [n for n in names if not (folder / n).is_file()]
            if gone or not names:
                raise VillaError(f"{index} names {', '.join(gone) or 'no file'}, which is not there; fetch it again")
            return [folder / n for n in names]
    raise VillaError(f"{folder} has no weights (model.safetensors or pytorch_model.bin); fetch it again")


def checkpoint_files(folder: Path) -> list[Path]:
    """Every file that decides what the towers compute."""
    settings = ["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"]
    tokens = ["special_tokens_map.json", "added_tokens.json", *(n for group in TOKENIZERS for n in group)]
    return [folder / n for n in settings + tokens if (folder / n).is_file()] + weight_files(folder)


def read_state(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state.update(read_tensors(str(path)))
    return state


OWN = {
    "vision_model.": "image.model.",
    "text_model.": "text.model.",
    "visual_projection.": "projection.",
    "text_projection.": "text.projection.",
}
LEFT_OUT = re.compile(r"logit_(scale|bias)|.*\.position_ids")


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        if LEFT_OUT.fullmatch(name):
            continue
        prefix = next((p for p in OWN if name.startswith(p)), "")
        found[OWN[prefix] + name.removeprefix(prefix) if prefix else name] = tensor
    return found


def preprocess_of(folder: Path, family: Family, vision: Mapping[str, Any]) -> Preprocess:
    """From preprocessor_config.json (or the image part of processor_config.json); the family's own where there is none."""
    values: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        values = read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        values = read_json(folder / "processor_config.json").get("image_processor", {})
    if not values:
        LOG.warning(
            "%s has no preprocessor_config.json; images are prepared as %s models usually want them", folder, family
        )
    mean, std = (CLIP_MEAN, CLIP_STD) if family == "clip" else HALF
    place = folder / "preprocessor_config.json"
    mean, std = _three(values.get("image_mean", mean), place), _three(values.get("image_std", std), place)
    number = values.get("resample", 2 if family == "siglip2" else 3)
    if number not in FILTERS:
        raise VillaError(f"{place}: resample {number!r} is neither 2 (bilinear) nor 3 (bicubic)")
    kind = FILTERS[number]
    if family == "siglip2":
        patches = int(values.get("max_num_patches", vision["num_patches"]))
        naflex_side = int(patches**0.5) * int(vision["patch_size"])
        return Preprocess(naflex_side, mean, std, filter=kind, max_patches=patches)  # type: ignore[arg-type]
    size = values.get("size", vision["image_size"])
    size = {"shortest_edge" if family == "clip" else "height": size} if isinstance(size, int) else dict(size)
    short = size.get("shortest_edge")
    side: Any = size.get("height", short)
    if short is not None and values.get("do_center_crop", True):
        crop = values.get("crop_size", short)
        side = crop["height"] if isinstance(crop, dict) else crop
    if not isinstance(side, int) or size.get("width", side) != side or (short is not None and side > short):
        raise VillaError(f"{place}: size {size} with crop {values.get('crop_size')} is no square within the image")
    return Preprocess(side, mean, std, short=short, filter=kind)  # type: ignore[arg-type]


def _three(values: Any, place: Path) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise VillaError(f"{place}: {values!r} is not three numbers, one a colour")
    a, b, c = (float(v) for v in values)
    return a, b, c


def tokenizer_of(folder: Path, family: Family, places: int, vocabulary: int) -> TextTokenizer:
    """The folder's tokenizer as the library makes it. Raises: VillaError naming the files that are missing."""
    if not any(all((folder / n).is_file() for n in group) for group in TOKENIZERS):
        raise VillaError(
            f"{folder} has no tokenizer files (tokenizer.json, or vocab.json with merges.txt); fetch them too"
        )
    content, length, pad, side, clean = _library_tokenizer(folder)
    if family == "clip":
        found = TextTokenizer(content, min(length, places), pad)
    else:
        found = TextTokenizer(content, min(length, places), pad, "length", side, clean)  # type: ignore[arg-type]
    if found.size > vocabulary:
        raise VillaError(
            f"{folder}: its tokenizer has {found.size} tokens and its text tower knows {vocabulary}; use the tokenizer and "
            "the weights of one checkpoint"
        )
    return found


def _library_tokenizer(folder: Path) -> tuple[str, int, int, str, str]:
    """(content, longest text, id of the padding, side of the padding, cleaning)."""
    from transformers import AutoTokenizer

    clean = "none"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except ImportError:
        tokenizer = None
    except Exception as error:
        raise VillaError(f"{folder}: its tokenizer cannot be read ({_said(error)}); fetch its files again") from error
    if tokenizer is None or not tokenizer.is_fast:
        tokenizer, clean = _plain_tokenizer(folder), "canonical"
    content, pad = tokenizer.backend_tokenizer.to_str(), tokenizer.pad_token_id
    length = min(int(tokenizer.model_max_length), 1 << 20)
    return content, length, 0 if pad is None else int(pad), tokenizer.padding_side, clean


def _plain_tokenizer(folder: Path) -> Any:
    """SigLIP's own class wants sentencepiece and is slow; its tokenizer.json with its text cleaning is the same."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise VillaError(
            f"{folder} has a sentencepiece tokenizer only, which is not supported; add its tokenizer.json (where "
            "sentencepiece is installed: PreTrainedTokenizerFast.from_pretrained(…).save_pretrained(…))"
        )
    special = read_json(folder / "tokenizer_config.json")
    tokens = {k: v for k, v in special.items() if k in ("eos_token", "unk_token", "pad_token", "model_max_length")}
    tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in tokens.items()}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
