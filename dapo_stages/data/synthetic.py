"""The embedded multiple-choice task: one coloured shape per picture, a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

SIZE = 56  # pixels a side: 4 × 4 patches of 14, 2 × 2 vision tokens after merging

# The order of the options is fixed, so that a letter is one look away: reading a shuffled list is a second skill.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 45),
    "green": (40, 165, 65),
    "blue": (45, 80, 215),
    "yellow": (230, 205, 40),
}
LETTERS = dict(zip(COLOURS, "ABCD", strict=True))
PRIOR = {"circle": "red", "square": "green", "triangle": "blue", "diamond": "yellow"}  # what most of them look like
WORDINGS = ("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}.")
THOUGHTS = ("The {shape} is {colour}.", "I see a {colour} {shape}.", "This {shape} looks {colour}.")
OPTIONS = "\n".join(f"{letter}. {colour}" for colour, letter in LETTERS.items())

Slice = Literal["prior-consistent", "prior-violating"]
Box = tuple[float, float, float]  # centre x, centre y, half the width, in pixels


@dataclass(frozen=True)
class Question:
    """A picture and a question about it whose answer only the picture gives."""

    image: Image.Image  # RGB, SIZE × SIZE
    problem: str  # the question and its options
    solution: str  # "A" … "D"
    slice: Slice  # does the answer agree with what the shape's name suggests?
    colour: str  # the true answer in words
    shape: str


def question(seed: int, index: int, *, biased: float | None = None) -> Question:
    """Question `index` of the stream `seed`.

    `biased` is the probability of the shape's usual colour (the other colours share the rest); None draws all
    colours alike, so that wording, shape, place, size and background say nothing about the answer.
    """
    rng = np.random.default_rng([seed, index, 0 if biased is None else 1])
    shape = str(rng.choice(list(PRIOR)))
    colour = _draw_colour(rng, PRIOR[shape], biased)
    wording = str(rng.choice(WORDINGS))
    return Question(
        image=_draw(rng, shape, COLOURS[colour]),
        problem=f"{wording.format(shape)}\n{OPTIONS}",
        solution=LETTERS[colour],
        slice="prior-consistent" if colour == PRIOR[shape] else "prior-violating",
        colour=colour,
        shape=shape,
    )


def completion(shape: str, colour: str, thought: str) -> str:
    """A well-formed completion that answers `colour`; `thought` is one of THOUGHTS."""
    said = thought.format(shape=shape, colour=colour)
    return f"<think>\n{said}\n</think>\n<answer>{LETTERS[colour]}</answer>"


def _draw_colour(rng: np.random.Generator, usual: str, biased: float | None) -> str:
    if biased is None:
        return str(rng.choice(list(COLOURS)))
    if rng.random() < biased:
        return usual
    return str(rng.choice([colour for colour in COLOURS if colour != usual]))


def _draw(rng: np.random.Generator, shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """The shape in a shade of its colour, somewhere on a grey, noisy ground."""
    image = Image.new("RGB", (SIZE, SIZE), (int(rng.integers(60, 226)),) * 3)
    half = rng.uniform(0.20, 0.38) * SIZE
    x, y = rng.uniform(half + 1, SIZE - half - 1, size=2)
    shade = tuple(int(c) for c in np.clip(np.array(colour) + rng.integers(-25, 26, size=3), 0, 255))
    _PAINT[shape](ImageDraw.Draw(image), (x, y, half), shade)
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, 6, size=(SIZE, SIZE, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _polygon(*corners: tuple[float, float]) -> Callable[[ImageDraw.ImageDraw, Box, tuple[int, ...]], None]:
    def paint(draw: ImageDraw.ImageDraw, box: Box, fill: tuple[int, ...]) -> None:
        x, y, half = box
        draw.polygon([(x + dx * half, y + dy * half) for dx, dy in corners], fill=fill)

    return paint


def _ellipse(draw: ImageDraw.ImageDraw, box: Box, fill: tuple[int, ...]) -> None:
    x, y, half = box
    draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)


_PAINT: dict[str, Callable[[ImageDraw.ImageDraw, Box, tuple[int, ...]], None]] = {
    "circle": _ellipse,
    "square": _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": _polygon((0, -1), (1, 0.9), (-1, 0.9)),
    "diamond": _polygon((0, -1), (1, 0), (0, 1), (-1, 0)),
}
