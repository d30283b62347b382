"""The twenty attributes of DocMNIST and the sentences that say them."""

from __future__ import annotations

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "yellow", "green", "blue", "purple")
SHAPES = ("rectangle", "circle")
SIZES = ("small", "medium", "large")
ATTRIBUTES = DIGITS + COLOURS + SHAPES + SIZES
GROUPS = ("digit",) * 10 + ("colour",) * 5 + ("shape",) * 2 + ("size",) * 3

TEMPLATES = {
    "digit": (
        "the image shows a {}",
        "there is an image showing a {}",
        "the number is a {}",
    ),
    "colour": ("the color is {}", "the digit appears to be {}", "there is a {} image", "the image is {}"),
    "shape": ("the shape is a {}", "there is a {}", "the image has a {}"),
    "size": ("the shape size is {}", "the size of the shape is {}", "the shape is {}"),
}

FIRST_COLOUR, FIRST_SHAPE, FIRST_SIZE = 10, 15, 17

PROMPTS = tuple(tuple(t.format(name) for t in TEMPLATES[g]) for name, g in zip(ATTRIBUTES, GROUPS, strict=True))
SENTENCES = tuple(s for prompts in PROMPTS for s in prompts)
FIRST_SENTENCE = np.cumsum([0] + [len(p) for p in PROMPTS])[:-1]  # of each attribute, into SENTENCES
SENTENCE_COUNT = np.array([len(p) for p in PROMPTS])


def phrases() -> list[dict[str, object]]:
    """The vocabulary as `vocabulary.attributes` of a config takes it."""
    return [
        {"phrase": name, "group": group, "prompts": list(prompts)}
        for name, group, prompts in zip(ATTRIBUTES, GROUPS, PROMPTS, strict=True)
    ]
