"""The embedded task `scenes`: two or more objects, places, relations and numbers, options in any order.

Harder than `colours`: the words of a question say where to look, and letters mean something else in every question. A
pure function of (seed, index).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from dapo_stages.data.drawing import COLOURS, SHAPES, Box, ground, paint, with_noise
from dapo_stages.data.questions import Question, draw_answer

CELL = 28  # pixels: a vision token after merging
CELLS = 2  # a side
SIZE = CELL * CELLS
SIDES = {"left": (-1, 0), "right": (1, 0), "upper": (0, -1), "lower": (0, 1)}  # x to the right, y down


@dataclass(frozen=True)
class Kind:
    """A kind of question: what it is about, its usual answer, and how both are put into words."""

    wordings: tuple[str, ...]
    thoughts: tuple[str, ...]
    usual: dict[str, str]  # subject -> the answer that most such questions have


KINDS: dict[str, Kind] = {
    "colour": Kind(
        ("What colour is the {} object?", "Name the colour of the {} object."),
        ("The {subject} object is {answer}.", "I see {answer} on the {subject} side."),
        dict(zip(SIDES, COLOURS, strict=True)),
    ),
    "relation": Kind(
        ("Where is the {} object?", "On which side is the {} object?"),
        ("The {subject} object is on the {answer} side.", "I see {subject} on the {answer} side."),
        dict(zip(COLOURS, SIDES, strict=True)),
    ),
    "count": Kind(
        ("How many {}s are there?", "Count the {}s."),
        ("Counting the {subject}s gives {answer}.", "The {subject}s are {answer}."),
        dict(zip(SHAPES, ("one", "two", "three", "four"), strict=True)),
    ),
}


def question(seed: int, index: int, *, biased: float | None = None) -> Question:
    """Question `index` of the stream `seed`; its slice says whether the usual answer is right, and the kind.

    `biased` is the probability of the subject's usual answer (the others share the rest); None draws all alike.
    """
    rng = np.random.default_rng([seed, index, 2 if biased is None else 3])
    name = str(rng.choice(list(KINDS)))
    kind = KINDS[name]
    subject = str(rng.choice(list(kind.usual)))
    options = list(kind.usual.values())
    answer = draw_answer(rng, options, kind.usual[subject], biased)
    wording = str(rng.choice(kind.wordings))
    order = [str(option) for option in rng.permutation(options)]
    return _asked(name, subject, answer, wording, order, _DRAW[name](rng, subject, answer))


def texts() -> Iterator[tuple[str, str]]:
    """Every problem with every well-formed completion, the options turned round but not in all their orders."""
    blank = Image.new("RGB", (1, 1))
    for name, kind in KINDS.items():
        options = list(kind.usual.values())
        for subject, wording, thought, answer, turn in product(kind.usual, kind.wordings, range(2), options, range(4)):
            asked = _asked(name, subject, answer, wording, options[turn:] + options[:turn], blank)
            yield asked.problem, asked.completion(answer, thought)


def _asked(kind: str, subject: str, answer: str, wording: str, order: list[str], image: Image.Image) -> Question:
    letters = dict(zip(order, "ABCD", strict=True))
    problem = "\n".join([wording.format(subject), *(f"{letter}. {option}" for option, letter in letters.items())])
    usual = KINDS[kind].usual[subject]
    return Question(image, problem, letters, answer, usual, subject, KINDS[kind].thoughts, kind)


def _colour(rng: np.random.Generator, side: str, colour: str) -> Image.Image:
    return _pair(rng, side, colour)


def _relation(rng: np.random.Generator, colour: str, side: str) -> Image.Image:
    return _pair(rng, side, colour)


def _pair(rng: np.random.Generator, side: str, colour: str) -> Image.Image:
    """An object of that colour on that side of another one of another colour, in one row or one column of cells."""
    image = ground(rng, SIZE)
    other = str(rng.choice([name for name in COLOURS if name != colour]))
    across = int(rng.integers(CELLS))
    first, second = sorted(rng.choice(CELLS, size=2, replace=False))
    dx, dy = SIDES[side]
    near, far = (first, second) if dx + dy < 0 else (second, first)
    for along, name in ((near, colour), (far, other)):
        cell = (along, across) if dx else (across, along)
        paint(rng, image, str(rng.choice(list(SHAPES))), name, _inside(rng, *cell))
    return with_noise(rng, image)


def _count(rng: np.random.Generator, shape: str, number: str) -> Image.Image:
    """That many of the shape, each in a cell and a colour of its own drawing."""
    image = ground(rng, SIZE)
    number_of = list(KINDS["count"].usual.values()).index(number) + 1
    for cell in rng.choice(CELLS**2, size=number_of, replace=False):
        paint(rng, image, shape, str(rng.choice(list(COLOURS))), _inside(rng, int(cell) % CELLS, int(cell) // CELLS))
    return with_noise(rng, image)


def _inside(rng: np.random.Generator, column: int, row: int) -> Box:
    """Somewhere in a cell."""
    half = rng.uniform(0.30, 0.46) * CELL
    x, y = rng.uniform(half, CELL - half, size=2)
    return column * CELL + x, row * CELL + y, half


_DRAW = {"colour": _colour, "relation": _relation, "count": _count}
