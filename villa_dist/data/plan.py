"""How images are batched where they differ in size and in their number of regions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def batches(
    sizes: Iterable[tuple[int, int]],
    boxes_per_image: Sequence[int],
    *,
    max_images: int,
    max_pixels: int,
    max_boxes: int,
    one_size: bool = False,
) -> Iterator[range]:
    """Runs of images, in order and without gaps, each within the limits; an image that is over one stands alone.

    sizes: (height, width), read one image ahead of what is yielded. Pixels are those of the batch as padded: images times
    the largest height times the largest width. one_size: images of another height or width begin a run.
    """
    start, end, tallest, widest, boxes = 0, 0, 0, 0, 0
    for (height, width), count in zip(sizes, boxes_per_image, strict=True):
        number = end - start + 1
        pixels = number * max(tallest, height) * max(widest, width)
        other = one_size and (height, width) != (tallest, widest)
        if number > 1 and (other or number > max_images or pixels > max_pixels or boxes + count > max_boxes):
            yield range(start, end)
            start, tallest, widest, boxes = end, 0, 0, 0
        tallest, widest, boxes, end = max(tallest, height), max(widest, width), boxes + count, end + 1
    if start < end:
        yield range(start, end)
