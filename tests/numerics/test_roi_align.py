"""RoIAlign against a scalar transcription of detectron2's aligned kernel."""

from __future__ import annotations

import pytest
import torch

from villa_dist.roi_align import roi_align


def bilinear(plane: list[list[float]], y: float, x: float) -> float:
    height, width = len(plane), len(plane[0])
    if y < -1.0 or y > height or x < -1.0 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y_low, x_low = int(y), int(x)
    if y_low >= height - 1:
        y_high = y_low = height - 1
        y = float(y_low)
    else:
        y_high = y_low + 1
    if x_low >= width - 1:
        x_high = x_low = width - 1
        x = float(x_low)
    else:
        x_high = x_low + 1
    ly, lx = y - y_low, x - x_low
    hy, hx = 1.0 - ly, 1.0 - lx
    return (
        hy * hx * plane[y_low][x_low]
        + hy * lx * plane[y_low][x_high]
        + ly * hx * plane[y_high][x_low]
        + ly * lx * plane[y_high][x_high]
    )


def kernel(maps: list, boxes: list, image_of: list[int], bins: int, scale: float, samples: int) -> list:
    """ROIAlignForward with aligned=True and a fixed sampling ratio, one output number at a time."""
    out = []
    for (x1, y1, x2, y2), image in zip(boxes, image_of, strict=True):
        start_w, start_h = x1 * scale - 0.5, y1 * scale - 0.5
        bin_w, bin_h = (x2 * scale - 0.5 - start_w) / bins, (y2 * scale - 0.5 - start_h) / bins
        planes = []
        for plane in maps[image]:
            rows = []
            for ph in range(bins):
                row = []
                for pw in range(bins):
                    total = 0.0
                    for iy in range(samples):
                        y = start_h + ph * bin_h + (iy + 0.5) * bin_h / samples
                        for ix in range(samples):
                            x = start_w + pw * bin_w + (ix + 0.5) * bin_w / samples
                            total += bilinear(plane, y, x)
                    row.append(total / (samples * samples))
                rows.append(row)
            planes.append(rows)
        out.append(planes)
    return out


SCALE = 0.25
BOXES = [  # maps of 7 x 9 cells: images of 36 x 28 pixels
    [0.0, 0.0, 36.0, 28.0],
    [3.1, 5.7, 20.3, 22.9],
    [10.0, 10.0, 10.7, 10.3],  # within a cell
    [12.0, 8.0, 12.0, 8.0],  # of no size
    [5.0, 3.0, 5.0, 25.0],  # of no width
    [-15.0, -9.0, 12.0, 14.0],  # partly outside
    [20.0, 16.0, 60.0, 50.0],
    [-400.0, -300.0, -350.0, -250.0],  # wholly outside
    [300.0, 200.0, 340.0, 260.0],
    [-1.9, 27.0, 37.9, 33.1],  # around the border, where samples are clamped
    [30.0, 20.0, 10.0, 5.0],  # inside out
]


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("bins", [1, 2, 5])
def test_it_equals_the_kernel(bins: int, samples: int) -> None:
    maps = torch.randn(3, 2, 7, 9)
    image_of = [k % 3 for k in range(len(BOXES))]
    found = roi_align(maps, torch.tensor(BOXES), torch.tensor(image_of), bins=bins, scale=SCALE, samples=samples)
    expected = torch.tensor(kernel(maps.tolist(), BOXES, image_of, bins, SCALE, samples))
    assert found.shape == (len(BOXES), 2, bins, bins)
    assert (found - expected).abs().max() < 2e-5
    assert not found[7:9].any(), "a box wholly outside pools to zero"


def test_gradients_equal_finite_differences() -> None:
    maps = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes, image_of = torch.tensor(BOXES), torch.tensor([k % 2 for k in range(len(BOXES))])
    assert torch.autograd.gradcheck(
        lambda m: roi_align(m, boxes, image_of, bins=2, scale=SCALE, samples=2), (maps,), atol=1e-6
    )


def test_a_box_over_whole_cells_gives_those_cells() -> None:
    maps = torch.arange(48, dtype=torch.float32).view(1, 1, 6, 8)
    found = roi_align(maps, torch.tensor([[8.0, 4.0, 20.0, 16.0]]), torch.tensor([0]), bins=3, scale=0.25, samples=1)
    assert torch.equal(found[0, 0], maps[0, 0, 1:4, 2:5])


def test_no_box_is_no_row() -> None:
    none = roi_align(torch.randn(2, 3, 4, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), bins=7, scale=0.25)
    assert none.shape == (0, 3, 7, 7)
