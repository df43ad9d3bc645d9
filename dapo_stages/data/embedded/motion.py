"""The embedded task `motion`: which way a square goes, in a video of four frames; a pure function of (seed, index).

No single frame tells: a square goes from one quarter of the frame to the next, and from each there are two ways to go,
and two to arrive. Frames have the dark border of `places`, which tells a vision token where it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from dapo_stages.data.embedded.drawing import COLOURS, ground, paint, with_noise
from dapo_stages.data.embedded.questions import Question, draw_answer

SIZE = 56  # pixels per side of a frame: 2 × 2 vision tokens for each temporal step
FRAMES = 4  # two temporal steps
SECONDS = 0.5  # from frame to frame
FRAME = 2  # pixels of the border
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x to the right, y down
ENDS = {"left": ("right", "left"), "right": ("left", "right"), "up": ("bottom", "top"), "down": ("top", "bottom")}
LETTERS = dict(zip(WAYS, "ABCD", strict=True))
PRIOR = dict(zip(COLOURS, WAYS, strict=True))  # the usual way of each color
WORDINGS = ("Which way did the {} square go?", "Where did the {} square move?", "Name the way of the {} square.")
THOUGHTS = (
    "First {start}, then {end}. So {way}.",
    "It starts {start} and ends {end}. So {way}.",
    "From {start} to {end}. So {way}.",
)
OPTIONS = "\n".join(f"{letter}. {way}" for way, letter in LETTERS.items())


def question(seed: int, index: int, *, biased: float | None = None, shuffled: bool = False) -> Question:
    """Question `index` of the stream `seed`.

    `biased` is the probability of the color's usual way (the others share the rest); None draws all with equal
    probability, so that wording and color say nothing about the answer. The options have a fixed order: `shuffled`
    raises ValueError.
    """
    if shuffled:
        raise ValueError("the options of `motion` have a fixed order and cannot be shuffled")
    rng = np.random.default_rng([seed, index, 7 if biased is None else 8])
    colour = str(rng.choice(list(COLOURS)))
    way = draw_answer(rng, list(WAYS), PRIOR[colour], biased)
    wording = str(rng.choice(WORDINGS))
    return _asked(colour, way, wording, _draw(rng, colour, way))


def texts() -> Iterator[tuple[str, str]]:
    """Every problem with every well-formed completion."""
    blank = (Image.new("RGB", (1, 1)),)
    for colour in COLOURS:
        for way in WAYS:
            for wording in WORDINGS:
                for thought in range(len(THOUGHTS)):
                    asked = _asked(colour, way, wording, blank)
                    yield asked.problem, asked.completion(way, thought)


def _asked(colour: str, way: str, wording: str, frames: tuple[Image.Image, ...]) -> Question:
    problem = f"{wording.format(colour)}\n{OPTIONS}"
    thoughts = {
        one: tuple(said.format(start=ENDS[one][0], end=ENDS[one][1], way=one) for said in THOUGHTS) for one in WAYS
    }
    columns = {"colour": colour, "way": way}
    return Question(frames[0], problem, LETTERS, way, PRIOR[colour], thoughts, columns=columns, frames=frames)


def _draw(rng: np.random.Generator, colour: str, way: str) -> tuple[Image.Image, ...]:
    """A square that goes from a quarter of the frame to one beside it; where in both, and how large, is random."""
    base = ground(rng, SIZE)
    half = rng.uniform(0.12, 0.17) * SIZE
    near, far = (half + FRAME, SIZE / 2 - half), (SIZE / 2 + half, SIZE - half - FRAME)  # on either axis alike
    across = rng.uniform(*(near if rng.random() < 0.5 else far))
    dx, dy = WAYS[way]
    places = np.linspace(rng.uniform(*near), rng.uniform(*far), FRAMES)[:: 1 if dx + dy > 0 else -1]
    shades, frames = rng.integers(2**32), []
    for along in places:
        image = base.copy()
        x, y = (along, across) if dx else (across, along)
        paint(np.random.default_rng(shades), image, "square", colour, (x, y, half))  # the same shade in all frames
        image = with_noise(rng, image)
        ImageDraw.Draw(image).rectangle((0, 0, SIZE - 1, SIZE - 1), outline=(0, 0, 0), width=FRAME)
        frames.append(image)
    return tuple(frames)
