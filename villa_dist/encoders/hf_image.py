"""Vision towers of CLIP, SigLIP and SigLIP 2 (transformers), whole images and regions.

One pass serves all inputs: images of any shapes as patches, position embeddings interpolated to each image's own grid,
shorter ones padded with patches that attention does not see. So a batch gives what its images give alone.

Regions, dense (RoIAlign on the map of the whole image):
  CLIP      the last layer's values in place of its attention (MaskCLIP, arXiv 2112.01071), through the final norm; a
            region is the mean of its bins, projected as the class token is. CLIP trains the class token alone: the last
            layer's attention mixes places, its values still say what stands where. `values: false` takes the tokens.
  SigLIP    tokens through the final norm; a region's bins go through the attention pooling that pools whole images.
Crops: every region is an image of its own, encoded as one.

Letters: N images, R regions, L places, C width, p patch, F features before projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ImageTowerConfig
from villa_dist.encoders.parts import adaptive_roi_align, crops, spans, to_inputs
from villa_dist.encoders.preprocess import (
    Placement,
    Preprocess,
    Size,
    dense_placement,
    normalise,
    place,
    sizes_of,
    whole_placement,
)

CHUNK = 256  # regions or images encoded at once where no gradient is kept, which bounds memory
Images = Sequence[Float[Tensor, "3 h w"]]


class HFImageTower(nn.Module):
    """`dim` is the width of embeddings, `feature_dim` that of features before `projection`. model: the library's tower."""

    def __init__(self, config: ImageTowerConfig, family: str, preprocess: Preprocess, dim: int, model: Any) -> None:
        super().__init__()
        self.config, self.family, self.preprocess = config, family, preprocess
        self.model: Any = model
        vision = self.model.config
        self.patch, self.feature_dim = int(vision.patch_size), int(vision.hidden_size)
        self.dim: int | None = dim
        self.side = config.size or self.preprocess.side
        self.prefix = 1 if self.family == "clip" else 0  # places before the patches: CLIP's class token
        positions = self.model.embeddings.position_embedding.weight.shape[0] - self.prefix
        self.cells = round(positions**0.5)

    def projection(self) -> nn.Module:
        """CLIP's visual projection; SigLIP's pooling has none after it."""
        assert self.dim is not None
        return nn.Linear(self.feature_dim, self.dim, bias=False) if self.family == "clip" else nn.Identity()

    # ---- whole images and crops

    def encode_whole(
        self, pixels: UInt8[Tensor, "N 3 H W"], sizes: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N F"]:
        every = sizes_of(pixels, sizes)
        placements = [whole_placement(s, self.preprocess, self.patch) for s in every]
        return self.encode(pixels, range(len(every)), placements)

    def encode(
        self, pixels: UInt8[Tensor, "N 3 H W"], image_of: Sequence[int], placements: Sequence[Placement]
    ) -> Float[Tensor, "M F"]:
        """M parts of images, each as an image."""
        found = []
        for span in spans(len(placements), CHUNK):
            images = self.inputs(pixels, image_of[span], placements[span])
            # no image at all still goes through every layer, as other ranks' do; the library takes no empty batch
            black = torch.zeros(3, self.patch, self.patch, device=pixels.device)
            tokens, seen, _ = self.embed(images or [black])
            found.append(self.pool(self.layers(tokens, seen), seen)[: len(images)])
        return torch.cat(found)

    def pool(self, tokens: Float[Tensor, "N L C"], seen: Bool[Tensor, "N L"] | None) -> Float[Tensor, "N F"]:
        if self.family == "clip":
            pooled: Tensor = self.model.post_layernorm(tokens[:, 0])
            return pooled
        tokens = self.model.post_layernorm(tokens)
        return self.attention_pool(tokens, seen)

    def attention_pool(self, tokens: Float[Tensor, "N L C"], seen: Bool[Tensor, "N L"] | None) -> Float[Tensor, "N F"]:
        if self.family == "siglip2":
            pooled: Tensor = self.model.head(tokens, seen)
            return pooled
        assert seen is None, "SigLIP images have one shape"
        pooled = self.model.head(tokens)
        return pooled

    # ---- regions

    def encode_regions(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R F"]:
        """Boxes in pixels of the images."""
        every = sizes_of(pixels, sizes)
        if self.config.regions == "crops":
            placed = crops(every, boxes, image_of, self.config, self.preprocess, self.patch)
            return self.encode(pixels, image_of.tolist(), placed)
        placements = [dense_placement(s, self.side, self.patch, self.config.shape) for s in every]
        maps = self.feature_map(self.inputs(pixels, range(len(every)), placements))
        return self.regions(maps, to_inputs(boxes, image_of, placements), image_of)

    def feature_map(self, images: Images) -> Float[Tensor, "N C h w"]:
        """Of stride `patch`. Beyond the edge of a smaller image its last row and column go on, as RoIAlign would clamp."""
        tokens, seen, grids = self.embed(images)
        by_value = self.family == "clip" and self.config.values
        tokens = self.model.post_layernorm(self.layers(tokens, seen, by_value=by_value))[:, self.prefix :]
        height, width = max(g[0] for g in grids), max(g[1] for g in grids)
        rows, columns = torch.arange(height), torch.arange(width)
        index = torch.stack(
            [(rows.clamp(max=h - 1)[:, None] * w + columns.clamp(max=w - 1)[None]).flatten() for h, w in grids]
        ).to(tokens.device)
        places = tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
        return places.transpose(1, 2).unflatten(2, (height, width))

    def regions(
        self, maps: Float[Tensor, "N C h w"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R F"]:
        """Boxes in pixels of the input."""
        found = []
        for span in spans(len(boxes), CHUNK):
            bins = self.config.roi_bins
            cut = adaptive_roi_align(maps, boxes[span], image_of[span], bins, self.patch).flatten(2)
            found.append(cut.mean(2) if self.family == "clip" else self.attention_pool(cut.transpose(1, 2), None))
        return torch.cat(found)

    # ---- the transformer

    def inputs(
        self, pixels: UInt8[Tensor, "N 3 H W"], image_of: Sequence[int], placements: Sequence[Placement]
    ) -> list[Tensor]:
        chosen = zip(image_of, placements, strict=True)
        return [normalise(place(pixels[n], p, self.preprocess.filter)[None], self.preprocess)[0] for n, p in chosen]

    def embed(self, images: Images) -> tuple[Float[Tensor, "N L C"], Bool[Tensor, "N L"] | None, list[Size]]:
        """(patches with their positions, which of them are real or None for all, each image's grid).

        Every module is called once, whatever the shapes: under ZeRO-3 ranks must call alike.
        """
        grids = [(i.shape[1] // self.patch, i.shape[2] // self.patch) for i in images]
        table, seen = self.table(), None
        if len(set(grids)) <= 1:
            tokens = self.patches(torch.stack(list(images))) + self.positions(table, grids[0])[None]
        else:
            cut = [tiles(i, self.patch) for i in images]
            positions = {g: self.positions(table, g) for g in set(grids)}
            rows = self.patches(torch.cat(cut))[:, 0].split([len(c) for c in cut])
            tokens = nn.utils.rnn.pad_sequence(
                [r + positions[g] for r, g in zip(rows, grids, strict=True)], batch_first=True
            )
            counts = torch.tensor([len(c) for c in cut], device=tokens.device)
            seen = torch.arange(tokens.shape[1], device=tokens.device)[None] < counts[:, None]
        if self.prefix:
            first = self.model.embeddings.class_embedding + table[0]
            tokens = torch.cat([first.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], 1)
            seen = F.pad(seen, (1, 0), value=True) if seen is not None else None
            tokens = self.model.pre_layrnorm(tokens)
        return tokens, seen, grids

    def patches(self, images: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N L C"]:
        layer = self.model.embeddings.patch_embedding
        if isinstance(layer, nn.Conv2d):
            found: Tensor = layer(images).flatten(2).transpose(1, 2)
            return found
        p = self.patch
        cut = images.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # N 3 rows p columns p
        found = layer(cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        return found

    def table(self) -> Float[Tensor, "P C"]:
        """All position embeddings, by a call of their module: ZeRO-3 gathers them at calls."""
        layer = self.model.embeddings.position_embedding
        found: Tensor = layer(torch.arange(layer.num_embeddings, device=layer.weight.device))
        return found

    def positions(self, table: Float[Tensor, "P C"], grid: Size) -> Float[Tensor, "L C"]:
        """Interpolated to the grid as each family's own code does: bicubic, or bilinear with antialiasing (SigLIP 2)."""
        if grid == (self.cells, self.cells):
            return table[self.prefix :]
        square = table[self.prefix :].T.reshape(1, -1, self.cells, self.cells).float()
        naflex = self.family == "siglip2"
        mode = "bilinear" if naflex else "bicubic"
        found = F.interpolate(square, size=grid, mode=mode, align_corners=False, antialias=naflex)
        return found[0].flatten(1).T

    def layers(
        self, tokens: Float[Tensor, "N L C"], seen: Bool[Tensor, "N L"] | None, *, by_value: bool = False
    ) -> Float[Tensor, "N L C"]:
        """All layers. by_value: in the last one every place attends to itself alone."""
        mask = None
        if seen is not None:
            from transformers.masking_utils import create_bidirectional_mask

            mask = create_bidirectional_mask(config=self.model.config, inputs_embeds=tokens, attention_mask=seen)
        every = list(self.model.encoder.layers)
        for layer in every[: len(every) - by_value]:
            tokens = layer(tokens, mask)
        if by_value:
            last = every[-1]
            tokens = tokens + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(tokens)))
            tokens = tokens + last.mlp(last.layer_norm2(tokens))
        return tokens


def tiles(image: Float[Tensor, "3 h w"], patch: int) -> Float[Tensor, "L 3 p p"]:
    """An image's patches, row by row."""
    cut = image.unflatten(1, (-1, patch)).unflatten(3, (-1, patch))  # 3 rows p columns p
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
