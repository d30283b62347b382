"""RoIAlign in plain torch (Mask R-CNN, arXiv 1703.06870; the aligned kernel of detectron2).

Letters: N images, C channels, H x W map, K boxes, P output bins a side, S samples a bin.
A sample outside [-1, size] is zero; inside it is clamped to the map; a bin is the mean of its S x S samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def roi_align(
    maps: Float[Tensor, "N C H W"],
    boxes: Float[Tensor, "K 4"],
    image_of: Int[Tensor, " K"],
    *,
    bins: int,
    scale: float,
    samples: int = 2,
) -> Float[Tensor, "K C P P"]:
    """Pool each box (xyxy, pixels of the image) of map `image_of[k]` to `bins` x `bins`.

    scale: map cells a pixel (1 / stride). Gradients flow to `maps`. The gather is one `embedding_bag`, the fastest
    exact form on a CPU.
    """
    _, channels, height, width = maps.shape
    count = boxes.shape[0]
    if count == 0:
        # still a function of the maps: a rank without a region must run the same backward as the others
        return maps[:0, :, :1, :1].expand(0, channels, bins, bins)
    taps = [_axis(boxes[:, a], boxes[:, a + 2], bins, scale, samples, n) for a, n in ((1, height), (0, width))]
    (y_KPT, wy_KPT), (x_KPT, wx_KPT) = taps
    base = image_of.to(torch.int64).view(-1, 1, 1, 1, 1) * height
    index = (base + y_KPT[:, :, None, :, None]) * width + x_KPT[:, None, :, None, :]
    weight = wy_KPT[:, :, None, :, None] * wx_KPT[:, None, :, None, :]
    per_bin = index.shape[-1] * index.shape[-2]
    table = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = F.embedding_bag(
        index.reshape(-1, per_bin), table, mode="sum", per_sample_weights=weight.reshape(-1, per_bin).to(table.dtype)
    )
    return pooled.view(count, bins, bins, channels).permute(0, 3, 1, 2)


def _axis(low: Tensor, high: Tensor, bins: int, scale: float, samples: int, size: int) -> tuple[Tensor, Tensor]:
    """Map rows (or columns) read by each bin and their weights: two K x P x 2S tensors."""
    start = low.to(torch.float32) * scale - 0.5
    step = (high.to(torch.float32) * scale - 0.5 - start) / bins
    bin_P1 = torch.arange(bins, device=low.device, dtype=torch.float32)[:, None]
    sample_1S = (torch.arange(samples, device=low.device, dtype=torch.float32)[None] + 0.5) / samples
    at = start[:, None, None] + (bin_P1 + sample_1S)[None] * step[:, None, None]
    inside = ((at >= -1) & (at <= size)).to(torch.float32) / samples
    at = at.clamp(0, size - 1)
    first = at.floor().to(torch.int64)
    second = (first + 1).clamp(max=size - 1)
    fraction = at - first
    return torch.cat([first, second], -1), torch.cat([(1 - fraction) * inside, fraction * inside], -1)
