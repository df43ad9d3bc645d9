"""A multiple-choice question about a picture, as the embedded tasks draw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Question:
    """A picture and a question about it whose answer only the picture gives."""

    image: Image.Image  # RGB
    problem: str  # the question and its options
    letters: dict[str, str]  # each option in words -> its letter
    answer: str  # the true answer in words
    usual: str  # the answer that the words of the question suggest
    thoughts: Mapping[str, tuple[str, ...]]  # each option -> ways of reasoning that lead to it, as many for each
    kind: str = ""  # of several kinds of questions, the one that this is
    columns: Mapping[str, str] = field(default_factory=dict)  # what else there is to slice by

    @property
    def solution(self) -> str:
        """The letter of the true answer."""
        return self.letters[self.answer]

    @property
    def slice(self) -> str:
        """Whether the answer agrees with what the words suggest, and the kind of question where there are several."""
        agrees = "prior-consistent" if self.answer == self.usual else "prior-violating"
        return f"{agrees}, {self.kind}" if self.kind else agrees

    def completion(self, answer: str, thought: int) -> str:
        """A well-formed completion that answers `answer`, in the words of that thought."""
        return f"<think>\n{self.thoughts[answer][thought]}\n</think>\n<answer>{self.letters[answer]}</answer>"


def draw_answer(rng: np.random.Generator, options: list[str], usual: str, biased: float | None) -> str:
    """The usual answer with probability `biased`, else one of the others; None draws all alike."""
    if biased is None:
        return str(rng.choice(options))
    if rng.random() < biased:
        return usual
    return str(rng.choice([option for option in options if option != usual]))
