"""The embedded task `places`: where objects are, of which color, how many, and beside what; a pure function of
(seed, index).

Learnable, but not in a few steps, so that there is room between a policy that looks a little and one that looks well.
Images have a dark frame: it is what tells a vision token where it is. The rotary angles of neighboring vision tokens
hardly differ, and without an anchor only look-up by content is learned. Captions, which say of every place what is
there or of every color where it is, teach looking before anything is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from dapo_stages.data.embedded.drawing import COLOURS, SHAPES, Box, ground, paint, with_noise
from dapo_stages.data.embedded.questions import Lesson, Question, draw_answer

CELL = 28  # pixels: a vision token after merging
SIZE = 2 * CELL
FRAME = 2  # pixels
PLACES = ("top left", "top right", "bottom left", "bottom right")  # cells in rows
BESIDE = dict(zip(PLACES, ("top right", "top left", "bottom right", "bottom left"), strict=True))
NUMBERS = ("one", "two", "three", "four")
NOTHING = "nothing"
_COLOURS = tuple(COLOURS)
WORDINGS = {
    "at": ("What colour is the object at the {}?", "Name the colour at the {}."),
    "place": ("Where is the {} object?", "Name the place of the {} object."),
    "count": ("How many {} objects are there?", "Count the {} objects."),
    "beside": ("What colour is beside the {} object?", "Name the colour beside the {} object."),
}
USUAL: dict[str, dict[str, str]] = {  # kind -> subject -> usual answer
    "at": dict(zip(PLACES, (*_COLOURS[2:], *_COLOURS[:2]), strict=True)),
    "place": dict(zip(_COLOURS, PLACES, strict=True)),
    "count": dict(zip(_COLOURS, NUMBERS, strict=True)),
    "beside": dict(zip(_COLOURS, (*_COLOURS[1:], _COLOURS[0]), strict=True)),
}
SEEN = {  # in the words of the captions
    "at": "{subject} {answer}.",
    "place": "{subject} {answer}.",
    "count": "{answer} {subject}.",
    "beside": "{subject} {place}. {other} {answer}.",
}
OPENINGS = (
    "Let me look:",
    "Looking at it now:",
    "I check the picture:",
    "Well, let me see:",
    "First I look closely:",
    "Here is what I see:",
    "Now the picture:",
    "Okay, one moment:",
)
ENDS = ("So the answer is {} {}.", "That makes it {} {}.", "Therefore {} {}.", "Hence I say {} {}.")
WHAT, WHERE = "What is at each place?", "Where is each colour?"  # the two captions
Cells = dict[str, str]  # place -> color of its object; other places are empty


def question(seed: int, index: int, *, biased: float | None = None, shuffled: bool = False) -> Question:
    """Question `index` of the stream `seed`; its slice says whether the usual answer is right, and the kind.

    `biased` is the probability of the subject's usual answer (the others share the rest); None draws all with equal
    probability. The options have a fixed order for each kind: `shuffled` raises ValueError.
    """
    if shuffled:
        raise ValueError("the options of `places` have a fixed order and cannot be shuffled")
    rng = np.random.default_rng([seed, index, 4 if biased is None else 5])
    kind = str(rng.choice(list(USUAL)))
    subject = str(rng.choice(list(USUAL[kind])))
    answer = draw_answer(rng, options(kind, subject), USUAL[kind][subject], biased)
    wording = str(rng.choice(WORDINGS[kind]))
    place = str(rng.choice(PLACES))  # of the subject, where nothing else says it
    if kind == "count":
        cells = _several(rng, subject, NUMBERS.index(answer) + 1)
    elif kind == "beside":
        cells = _different(rng, {place: subject, BESIDE[place]: answer})
    else:
        cells = _different(rng, {subject: answer} if kind == "at" else {answer: subject})
    return _asked(kind, subject, answer, wording, place, _draw(rng, cells))


def options(kind: str, subject: str) -> list[str]:
    """The answers to choose from: four, or the three other colors beside an object (no color is there twice)."""
    return [answer for answer in sorted(USUAL[kind].values(), key=_ORDER.index) if answer != subject]


_ORDER = (*_COLOURS, *PLACES, *NUMBERS)


def caption(seed: int, index: int) -> Lesson:
    """Image `index` of the stream `seed` with what is at each place, or where each color is, in any order."""
    rng = np.random.default_rng([seed, index, 6])
    whats, alike = rng.random() < 0.5, rng.random() < 0.5
    if whats and alike:  # as where objects are counted
        cells = _several(rng, str(rng.choice(_COLOURS)), int(rng.integers(1, 5)))
    else:
        cells = _different(rng, {})
    said = _whats(cells, _mixed(rng, PLACES)) if whats else _wheres(cells, _mixed(rng, list(cells)))
    return Lesson(_draw(rng, cells), WHAT if whats else WHERE, said)


def texts() -> Iterator[tuple[str, str]]:
    """Every problem with its completions, and captions."""
    blank = Image.new("RGB", (1, 1))
    for kind, usual in USUAL.items():
        for subject, wording, place in product(usual, WORDINGS[kind], PLACES):
            for answer in options(kind, subject):
                asked = _asked(kind, subject, answer, wording, place, blank)
                thought = (_ORDER.index(subject) + PLACES.index(place) * 2) % len(OPENINGS)
                yield asked.problem, asked.completion(answer, thought)
    for turn, first in product(range(len(_COLOURS)), PLACES):
        cells = dict(zip(PLACES, (*_COLOURS[turn:], *_COLOURS[:turn]), strict=True))
        yield WHERE, _wheres(cells, PLACES)
        yield WHAT, _whats({place: colour for place, colour in cells.items() if place != first}, PLACES)


def _asked(kind: str, subject: str, answer: str, wording: str, place: str, image: Image.Image) -> Question:
    letters = dict(zip(options(kind, subject), "ABCD", strict=False))
    problem = "\n".join([wording.format(subject), *(f"{letter}. {option}" for option, letter in letters.items())])
    thoughts = {
        option: tuple(
            f"{opening} {SEEN[kind].format(subject=subject, answer=option, place=place, other=BESIDE[place])} "
            f"{ENDS[number % len(ENDS)].format(option, letter)}"
            for number, opening in enumerate(OPENINGS)
        )
        for option, letter in letters.items()
    }
    return Question(image, problem, letters, answer, USUAL[kind][subject], thoughts, kind, {"kind": kind})


def _different(rng: np.random.Generator, known: Cells) -> Cells:
    """Two to four objects of different colors, those `known` among them."""
    places = [place for place in _mixed(rng, PLACES) if place not in known]
    colours = [colour for colour in _mixed(rng, _COLOURS) if colour not in known.values()]
    more = int(rng.integers(2, 5)) - len(known)
    return known | dict(list(zip(places, colours, strict=True))[:more])


def _several(rng: np.random.Generator, colour: str, number: int) -> Cells:
    """`number` objects of that color, and in half of the other places one of another."""
    places = _mixed(rng, PLACES)
    others = [other for other in _COLOURS if other != colour]
    cells = dict.fromkeys(places[:number], colour)
    return cells | {place: str(rng.choice(others)) for place in places[number:] if rng.random() < 0.5}


def _mixed(rng: np.random.Generator, values: Sequence[str]) -> list[str]:
    return [str(value) for value in rng.permutation(values)]


def _whats(cells: Cells, places: Sequence[str]) -> str:
    return " ".join(f"{place} {cells.get(place, NOTHING)}." for place in places)


def _wheres(cells: Cells, places: Sequence[str]) -> str:
    return " ".join(f"{cells[place]} {place}." for place in places)


def _draw(rng: np.random.Generator, cells: Cells) -> Image.Image:
    """An object of a random shape in each cell that has one, and the frame, which noise does not touch."""
    image = ground(rng, SIZE)
    for place, colour in cells.items():
        paint(rng, image, str(rng.choice(list(SHAPES))), colour, _inside(rng, PLACES.index(place)))
    image = with_noise(rng, image)
    ImageDraw.Draw(image).rectangle((0, 0, SIZE - 1, SIZE - 1), outline=(0, 0, 0), width=FRAME)
    return image


def _inside(rng: np.random.Generator, cell: int) -> Box:
    """Somewhere in a cell, clear of the frame."""
    half = rng.uniform(0.28, 0.42) * CELL
    x, y = rng.uniform(half + FRAME, CELL - half - FRAME, size=2)
    return cell % 2 * CELL + x, cell // 2 * CELL + y, half
