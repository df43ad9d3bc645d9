"""The embedded task `colours`: one colored shape per image, a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from dapo_stages.data.embedded.drawing import COLOURS, ground, paint, with_noise
from dapo_stages.data.embedded.questions import Question, draw_answer

SIZE = 56  # pixels per side: 4 × 4 patches of 14, 2 × 2 vision tokens after merging

# The order of the options is fixed, so that a color always has the same letter: reading a shuffled list is a second
# skill.
LETTERS = dict(zip(COLOURS, "ABCD", strict=True))
PRIOR = {"circle": "red", "square": "green", "triangle": "blue", "diamond": "yellow"}  # usual color of each shape
WORDINGS = ("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}.")
THOUGHTS = ("The {shape} is {colour}.", "I see a {colour} {shape}.", "This {shape} looks {colour}.")
OPTIONS = "\n".join(f"{letter}. {colour}" for colour, letter in LETTERS.items())


def question(seed: int, index: int, *, biased: float | None = None, shuffled: bool = False) -> Question:
    """Question `index` of the stream `seed`.

    `biased` is the probability of the shape's usual color (the other colors share the rest); None draws all colors
    with equal probability, so that wording, shape, position, size and background say nothing about the answer. The
    options have a fixed order: `shuffled` raises ValueError.
    """
    if shuffled:
        raise ValueError("the options of `colours` have a fixed order and cannot be shuffled")
    rng = np.random.default_rng([seed, index, 0 if biased is None else 1])
    shape = str(rng.choice(list(PRIOR)))
    colour = draw_answer(rng, list(COLOURS), PRIOR[shape], biased)
    wording = str(rng.choice(WORDINGS))
    return _asked(shape, colour, wording, _draw(rng, shape, colour))


def texts() -> Iterator[tuple[str, str]]:
    """Every problem with every well-formed completion."""
    blank = Image.new("RGB", (1, 1))
    for shape in PRIOR:
        for colour in COLOURS:
            for wording in WORDINGS:
                for thought in range(len(THOUGHTS)):
                    asked = _asked(shape, colour, wording, blank)
                    yield asked.problem, asked.completion(colour, thought)


def _asked(shape: str, colour: str, wording: str, image: Image.Image) -> Question:
    problem = f"{wording.format(shape)}\n{OPTIONS}"
    thoughts = {option: tuple(said.format(shape=shape, colour=option) for said in THOUGHTS) for option in COLOURS}
    return Question(image, problem, LETTERS, colour, PRIOR[shape], thoughts, columns={"shape": shape, "colour": colour})


def _draw(rng: np.random.Generator, shape: str, colour: str) -> Image.Image:
    """The shape, somewhere in the image."""
    image = ground(rng, SIZE)
    half = rng.uniform(0.20, 0.38) * SIZE
    x, y = rng.uniform(half + 1, SIZE - half - 1, size=2)
    paint(rng, image, shape, colour, (x, y, half))
    return with_noise(rng, image)
