"""Drawing one sample: the image with numbered boxes, a legend with each box's attributes beside it, the text under it.

Names never lie on the image, only small numbers, each in a corner of its box where it covers no other number.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from villa_dist.sample_view import Region, View

MOST_REGIONS = 12
MOST_MARKS = 8  # of a region
LONG_SIDE, SMALL_SIDE = 900, 320  # images up to SMALL_SIDE are enlarged by a whole number, pixel by pixel
PANEL, MARGIN, GAP = 380, 24, 12
FONT_SIZE, BADGE = 17, 26
MOST_TEXT_LINES = 14
INK, FAINT, PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)
COLOURS = (
    (230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 150, 150),
    (240, 50, 230), (128, 128, 0), (170, 110, 40), (70, 70, 220), (200, 160, 0), (90, 90, 90),
)  # fmt: skip

Box = tuple[float, float, float, float]


@lru_cache(maxsize=4)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


@dataclass(frozen=True)
class Placed:
    """A region as it is drawn: its number, its colour, its box and the place of its badge on the page."""

    number: int
    colour: tuple[int, int, int]
    region: Region
    box: Box
    badge: tuple[float, float]


def draw(view: View, most: int = MOST_REGIONS) -> Image.Image:
    """The page as an RGB image. Only the `most` surest regions are drawn; the legend says how many there are."""
    picture, scale = _scaled(view.pixels)
    shown = place(view.regions[:most], scale, picture.size)
    legend, between = _legend_lines(view, shown, most), BADGE + 5
    width = picture.width + PANEL + 3 * MARGIN
    text = wrapped(clean(view.text), font(FONT_SIZE), width - 2 * MARGIN, MOST_TEXT_LINES)
    line = FONT_SIZE + 7
    head = MARGIN + line + GAP
    body = max(picture.height, len(legend) * between)
    page = Image.new("RGB", (width, head + body + GAP * 2 + len(text) * line + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    title = f"{clean(view.key)}   {view.stage or 'no sidecar'}   {view.pixels.shape[1]}x{view.pixels.shape[0]}"
    pen.text(
        (MARGIN, MARGIN), fitted(title, font(FONT_SIZE, bold=True), width - 2 * MARGIN), INK, font(FONT_SIZE, bold=True)
    )
    _draw_boxes(picture, shown)
    page.paste(picture, (MARGIN, head))
    _draw_legend(pen, legend, (MARGIN * 2 + picture.width, head), between)
    for n, row in enumerate(text):
        pen.text((MARGIN, head + body + GAP * 2 + n * line), row, INK, font(FONT_SIZE))
    return page


def _scaled(pixels: np.ndarray) -> tuple[Image.Image, float]:
    image = Image.fromarray(pixels)
    side = max(image.size)
    if side <= SMALL_SIDE:
        scale = float(max(1, LONG_SIDE * 2 // 3 // side))
        return image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.NEAREST), scale
    scale = LONG_SIDE / side
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS), scale


def place(regions: Sequence[Region], scale: float, size: tuple[int, int]) -> list[Placed]:
    """Boxes on the enlarged image, and a badge for each that covers no other badge where there is room."""
    taken: list[tuple[float, float]] = []
    placed = []
    for n, region in enumerate(regions):
        box = tuple(v * scale for v in region.box)
        badge = _free_corner(box, taken, size)  # type: ignore[arg-type]
        taken.append(badge)
        colour = COLOURS[(n if region.group is None else region.group) % len(COLOURS)]
        placed.append(Placed(n + 1, colour, region, box, badge))  # type: ignore[arg-type]
    return placed


def _free_corner(box: Box, taken: Sequence[tuple[float, float]], size: tuple[int, int]) -> tuple[float, float]:
    """Corners inside the box (outside for a small one), then the others, then along the edges: the first place where no
    badge is."""
    x1, y1, x2, y2 = box
    corners = [(x1, y1), (x2 - BADGE, y1), (x2 - BADGE, y2 - BADGE), (x1, y2 - BADGE)]
    outside = [(x1, y1 - BADGE), (x2 - BADGE, y1 - BADGE), (x1, y2), (x2 - BADGE, y2)]
    steps = range(1, 1 + int(max(x2 - x1, y2 - y1, 4 * BADGE) // BADGE))
    along = [(x1 + s * BADGE, y1) for s in steps] + [(x1, y1 + s * BADGE) for s in steps]
    small = min(x2 - x1, y2 - y1) < 2 * BADGE  # a badge inside would hide what it names
    for x, y in (outside + corners if small else corners + outside) + along:
        x, y = min(max(x, 0), size[0] - BADGE), min(max(y, 0), size[1] - BADGE)
        if all(abs(x - tx) >= BADGE or abs(y - ty) >= BADGE for tx, ty in taken):
            return x, y
    return min(max(x1, 0), size[0] - BADGE), min(max(y1, 0), size[1] - BADGE)


def _draw_boxes(picture: Image.Image, shown: Sequence[Placed]) -> None:
    pen = ImageDraw.Draw(picture)
    for p in reversed(shown):  # the surest on top
        x1, y1, x2, y2 = (round(v) for v in p.box)
        x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
        pen.rectangle((x1, y1, x2, y2), outline=PAPER, width=5)
        if x2 - x1 > 2 and y2 - y1 > 2:
            pen.rectangle((x1 + 1, y1 + 1, x2 - 1, y2 - 1), outline=p.colour, width=3)
    for p in shown:
        _draw_badge(pen, p, p.badge)


def _draw_badge(pen: ImageDraw.ImageDraw, placed: Placed, at: tuple[float, float]) -> None:
    x, y = at
    pen.rectangle((x, y, x + BADGE - 1, y + BADGE - 1), fill=placed.colour, outline=PAPER, width=2)
    middle = (x + BADGE / 2, y + BADGE / 2)
    pen.text(middle, str(placed.number), PAPER, font(FONT_SIZE - 2, bold=True), anchor="mm")


LegendLine = tuple[Placed | None, str, tuple[int, int, int]]


def _legend_lines(view: View, shown: Sequence[Placed], most: int) -> list[LegendLine]:
    lines: list[LegendLine] = []
    certain = all(score == 1.0 for r in view.regions for _, score in r.marks)  # known pairs: their score says nothing
    wide = PANEL - BADGE - GAP
    for p in shown:
        for n, row in enumerate(wrapped(description(p.region, scores=not certain), font(FONT_SIZE), wide, 4)):
            lines.append((p if n == 0 else None, row, INK))
    if len(view.regions) > most:
        lines.append((None, f"and {len(view.regions) - most} more regions", FAINT))
    if not view.regions and view.stage:
        lines.append((None, "no regions", FAINT))
    if view.mentions:
        mentioned = "the text mentions " + ", ".join(map(clean, view.mentions))
        lines += [(None, row, FAINT) for row in wrapped(mentioned, font(FONT_SIZE), wide, 12)]
    return lines


def description(region: Region, *, scores: bool = True) -> str:
    """`red .93, circle .71, and 2 more`; of a region without attributes its objectness."""
    if not region.marks:
        return f"objectness {region.score:.2f}" if region.score else "nothing said"
    parts = [f"{clean(phrase)} {score:.2f}" if scores else clean(phrase) for phrase, score in region.marks[:MOST_MARKS]]
    more = len(region.marks) - MOST_MARKS
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")


def _draw_legend(pen: ImageDraw.ImageDraw, lines: Sequence[LegendLine], at: tuple[int, int], line: int) -> None:
    x, y = at
    for n, (placed, row, colour) in enumerate(lines):
        top = y + n * line
        if placed is not None:
            _draw_badge(pen, placed, (x, top - 3))
        pen.text((x + BADGE + GAP, top), row, colour, font(FONT_SIZE))


# ---- texts


def clean(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def fitted(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut to `width` pixels."""
    if face.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if face.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low] + "…"


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """Lines of at most `width` pixels, the last one saying so where words are left out. Long words are cut."""
    lines, row = [], ""
    words = text.split(" ")
    for n, word in enumerate(words):
        longer = f"{row} {word}" if row else word
        if face.getlength(longer) <= width:
            row = longer
            continue
        if row:
            lines.append(row)
        row = fitted(word, face, width)
        if len(lines) >= most:
            return [*lines[: most - 1], f"… ({len(words) - n} more words)"]
    return [*lines, row] if row else lines


# ---- a terminal


def terminal(view: View, columns: int | None = None, most: int = MOST_REGIONS) -> str:
    """The sample in half blocks of 24-bit colours, two pixels a character, with its legend and text."""
    columns = columns or min(100, shutil.get_terminal_size().columns)
    height, width = view.pixels.shape[:2]
    scale = min(columns / width, 80 / height)
    size = (max(1, round(width * scale)), max(2, round(height * scale) // 2 * 2))
    picture = Image.fromarray(view.pixels).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    shown = [(n, COLOURS[n % len(COLOURS)], r) for n, r in enumerate(view.regions[:most])]
    for _, colour, region in reversed(shown):
        x1, y1, x2, y2 = (v * scale for v in region.box)
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour)
    pixels = np.asarray(picture)
    rows = [
        "".join(f"{_ansi(38, top)}{_ansi(48, low)}▀" for top, low in zip(*pair, strict=True)) + "\x1b[0m"
        for pair in zip(pixels[::2], pixels[1::2], strict=True)
    ]
    legend = [f"{_ansi(38, c)}█ {n + 1}\x1b[0m {description(r)}" for n, c, r in shown]
    return "\n".join([f"{clean(view.key)}  {view.stage}", *rows, *legend, clean(view.text)])


def _ansi(kind: int, colour: Sequence[int]) -> str:
    return f"\x1b[{kind};2;{colour[0]};{colour[1]};{colour[2]}m"
