"""What another user's process does with exported folders: it cannot import this project."""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path
from typing import Any

OURS = ("villa_dist", "shards", "cluster", "jaxtyping", "pydantic")


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(place: Path, names: list[str]) -> None:
    sys.meta_path.insert(0, Refuse())
    import numpy as np
    import torch
    import transformers
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    asked = np.load(place / "asked.npz", allow_pickle=False)
    texts, boxes = asked["texts"].tolist(), asked["boxes"]
    images = [asked["large"], asked["small"]]
    for name in names:
        model = AutoModel.from_pretrained(place / name, trust_remote_code=True)
        found = {
            "image": model.embed_image([Image.fromarray(images[0]), images[1], images[0]]),
            "region": model.embed_regions(Image.fromarray(images[0]), boxes),
            "text": model.embed_text(texts),
            "score": model.score(images[0], boxes, texts),
            "scale": model.scale.detach(),
            "none": torch.tensor([len(model.embed_regions(images[0], [])), len(model.embed_text([]))]),
        }
        try:
            model.embed_regions(images[0], [[5, 5, 5, 9]])
        except ValueError as error:
            assert "has no area" in str(error)
        else:
            raise AssertionError("a box without area was taken")
        library = transformers.CLIPModel if name.startswith("clip_vit") else None
        library = transformers.SiglipModel if name == "siglip" else library
        library = transformers.Siglip2Model if name == "siglip2" else library
        if library:
            plain = library.from_pretrained(place / name)
            alone = AutoModel.from_pretrained(place / name)
            assert type(alone) is library, type(alone)
            processed = AutoImageProcessor.from_pretrained(place / name)(
                Image.fromarray(images[0]), return_tensors="pt"
            )
            padding = True if name.startswith("clip_vit") else "max_length"
            ids = AutoTokenizer.from_pretrained(place / name)(
                texts, padding=padding, truncation=True, return_tensors="pt"
            )
            ids = {k: v for k, v in ids.items() if k == "input_ids" or (k == "attention_mask" and padding is True)}
            with torch.no_grad():
                u = plain.get_image_features(**processed).pooler_output
                v = plain.get_text_features(**ids).pooler_output
            found["library_image"] = torch.nn.functional.normalize(u, dim=-1)
            found["library_text"] = torch.nn.functional.normalize(v, dim=-1)
            found["library_scale"] = plain.logit_scale.detach().exp()
        np.savez(place / f"{name}.npz", **{k: v.numpy() for k, v in found.items()})
    assert not any(m.split(".")[0] in OURS for m in sys.modules)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
