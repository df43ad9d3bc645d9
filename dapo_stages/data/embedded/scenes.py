"""The embedded task `scenes`: positions, relations and counts of several objects; a pure function of (seed, index).

Harder than `colours`: the wording of a question says where to look. With `shuffled` options, letters mean something
different in every question, and reading them is a separate skill.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from PIL import Image

from dapo_stages.data.embedded.drawing import COLOURS, SHAPES, Box, ground, paint, with_noise
from dapo_stages.data.embedded.questions import Question, draw_answer

CELL = 28  # pixels: a vision token after merging
CELLS = 2  # per side
SIZE = CELL * CELLS
SIDES = {"left": (-1, 0), "right": (1, 0), "upper": (0, -1), "lower": (0, 1)}  # x to the right, y down
OPPOSITE = {"left": "right", "right": "left", "upper": "lower", "lower": "upper"}
NUMBERS = ("one", "two", "three", "four")
WORDINGS = {
    "colour": ("What colour is the {} object?", "Name the colour of the {} object."),
    "relation": ("Where is the {} object?", "On which side is the {} object?"),
    "count": ("How many {}s are there?", "Count the {}s."),
}
USUAL: dict[str, dict[str, str]] = {  # kind -> subject -> usual answer
    "colour": dict(zip(SIDES, COLOURS, strict=True)),
    "relation": dict(zip(COLOURS, SIDES, strict=True)),
    "count": dict(zip(SHAPES, NUMBERS, strict=True)),
}


def question(seed: int, index: int, *, biased: float | None = None, shuffled: bool = False) -> Question:
    """Question `index` of the stream `seed`; its slice says whether the usual answer is right, and the kind.

    `biased` is the probability of the subject's usual answer (the others share the rest); None draws all with equal
    probability. `shuffled` shuffles the options; else their order is fixed for each kind of question.
    """
    rng = np.random.default_rng([seed, index, 2 if biased is None else 3])
    kind = str(rng.choice(list(USUAL)))
    subject = str(rng.choice(list(USUAL[kind])))
    options = list(USUAL[kind].values())
    answer = draw_answer(rng, options, USUAL[kind][subject], biased)
    wording = str(rng.choice(WORDINGS[kind]))
    order = [str(option) for option in rng.permutation(options)] if shuffled else options
    if kind == "count":
        image, other = _several(rng, subject, NUMBERS.index(answer) + 1), ""
    else:
        side, colour = (subject, answer) if kind == "colour" else (answer, subject)
        other = str(rng.choice([name for name in COLOURS if name != colour]))
        image = _pair(rng, side, colour, other)
    return _asked(kind, subject, answer, other, wording, order, image)


def texts() -> Iterator[tuple[str, str]]:
    """Every problem with a completion, for every rotation (not every order) of the options."""
    blank = Image.new("RGB", (1, 1))
    for kind, usual in USUAL.items():
        options = list(usual.values())
        for subject, wording, answer, turn in product(usual, WORDINGS[kind], options, range(4)):
            order = options[turn:] + options[:turn]
            asked = _asked(kind, subject, answer, list(COLOURS)[turn], wording, order, blank)
            yield asked.problem, asked.completion(answer, 0)


def _asked(
    kind: str, subject: str, answer: str, other: str, wording: str, order: list[str], image: Image.Image
) -> Question:
    letters = dict(zip(order, "ABCD", strict=True))
    problem = "\n".join([wording.format(subject), *(f"{letter}. {option}" for option, letter in letters.items())])
    thoughts = {option: (f"{_seen(kind, subject, option, other)} So {option} {letters[option]}.",) for option in order}
    return Question(image, problem, letters, answer, USUAL[kind][subject], thoughts, kind, {"kind": kind})


def _seen(kind: str, subject: str, answer: str, other: str) -> str:
    """A description of the scene that leads to `answer`; `other` is the color of the object that is not asked about.

    Describing first makes several tokens depend on the image, and the answer follows from them.
    """
    if kind == "count":
        return f"There are {answer} {subject}s."
    if kind == "colour":
        return f"On the {subject} {answer}, on the {OPPOSITE[subject]} {other}."
    return f"On the {answer} {subject}, on the {OPPOSITE[answer]} {other}."


def _pair(rng: np.random.Generator, side: str, colour: str, other: str) -> Image.Image:
    """An object of that color on that side of one of another color, in the same row or column of cells."""
    image = ground(rng, SIZE)
    across = int(rng.integers(CELLS))
    first, second = (int(place) for place in sorted(rng.choice(CELLS, size=2, replace=False)))
    dx, dy = SIDES[side]
    near, far = (first, second) if dx + dy < 0 else (second, first)
    for along, name in ((near, colour), (far, other)):
        cell = (along, across) if dx else (across, along)
        paint(rng, image, str(rng.choice(list(SHAPES))), name, _inside(rng, *cell))
    return with_noise(rng, image)


def _several(rng: np.random.Generator, shape: str, number: int) -> Image.Image:
    """`number` objects of that shape, each in its own cell and in a random color."""
    image = ground(rng, SIZE)
    for cell in rng.choice(CELLS**2, size=number, replace=False):
        paint(rng, image, shape, str(rng.choice(list(COLOURS))), _inside(rng, int(cell) % CELLS, int(cell) // CELLS))
    return with_noise(rng, image)


def _inside(rng: np.random.Generator, column: int, row: int) -> Box:
    """A random place in a cell."""
    half = rng.uniform(0.30, 0.46) * CELL
    x, y = rng.uniform(half, CELL - half, size=2)
    return column * CELL + x, row * CELL + y, half
