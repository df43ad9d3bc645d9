"""A multiple-choice question about an image or a video, as the embedded tasks draw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image


class Lesson(NamedTuple):
    """What the warm-up teaches: to say `completion` when shown `image` and asked `problem`."""

    image: Image.Image
    problem: str
    completion: str
    frames: tuple[Image.Image, ...] = ()  # of a video, instead of the image


@dataclass(frozen=True)
class Question:
    """An image, and a question that only the image answers."""

    image: Image.Image  # RGB
    problem: str  # the question and its options
    letters: dict[str, str]  # each option in words -> its letter
    answer: str  # the true answer in words
    usual: str  # the answer that the wording suggests
    thoughts: Mapping[str, tuple[str, ...]]  # each option -> reasonings that lead to it, the same number for each
    kind: str = ""  # if there are several kinds of questions
    columns: Mapping[str, str] = field(default_factory=dict)  # more columns to slice by
    frames: tuple[Image.Image, ...] = ()  # of a video that is shown instead of the image, which is its first

    @property
    def solution(self) -> str:
        """The letter of the true answer."""
        return self.letters[self.answer]

    @property
    def slice(self) -> str:
        """Whether the answer agrees with what the wording suggests, and the kind of question if there are several."""
        agrees = "prior-consistent" if self.answer == self.usual else "prior-violating"
        return f"{agrees}, {self.kind}" if self.kind else agrees

    def completion(self, answer: str, thought: int) -> str:
        """A well-formed completion that answers `answer`, with reasoning number `thought`."""
        return f"<think>\n{self.thoughts[answer][thought]}\n</think>\n<answer>{self.letters[answer]}</answer>"


def draw_answer(rng: np.random.Generator, options: list[str], usual: str, biased: float | None) -> str:
    """The usual answer with probability `biased`, else one of the others; None draws all with equal probability."""
    if biased is None:
        return str(rng.choice(options))
    if rng.random() < biased:
        return usual
    return str(rng.choice([option for option in options if option != usual]))
