"""What evaluate and compare-evals keep in memory: a few counts per question, however long the completions are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = (
    "prompt_id", "slice", "labels", "num_options", "solution", "mode", "num_tokens",
    "reward_accuracy", "reward_format", "answer", "read_from",
)  # fmt: skip
MODES = ("greedy", "sample", "blank")
PLACES = ("tags", "stated", "lone", "unclosed", "none")  # where an answer was read, see rewards/answers.py
SUMS = ("answers", "correct", "formed", "strict", "tokens", *PLACES)

SLICE, OPTIONS, LETTER = "slice", "num_options", "solution_letter"  # names of slices, next to columns of the source
OTHER = "(other)"
_MOST_VALUES = 64  # of a slice that are reported; rarer ones are combined as OTHER


@dataclass(slots=True)
class Question:
    """One question: what it is, and sums over its answers in each mode, in the order of SUMS."""

    prompt_id: str
    solution: str
    slices: dict[str, str]
    options: int | None
    sums: dict[str, list[int]] = field(default_factory=lambda: {mode: [0] * len(SUMS) for mode in MODES})
    wrong: tuple[int, ...] = ()  # number of samples with each wrong answer, largest first
    votes: Counter[str] = field(default_factory=Counter)  # wrong answers until `settle`

    def of(self, mode: str, name: str) -> int:
        return self.sums[mode][SUMS.index(name)]


class Tallies:
    """Counts answers row by row; the texts of wrong answers are kept until `settle`, called after each shard."""

    def __init__(self) -> None:
        self._questions: dict[str, Question] = {}
        self._open: list[Question] = []

    def add(self, row: Row) -> None:
        """Count one answer."""
        question = self._questions.get(row["prompt_id"])
        if question is None:
            question = self._questions[row["prompt_id"]] = Question(
                row["prompt_id"], row["solution"], _slices(row), row["num_options"]
            )
            self._open.append(question)
        correct, formed = int(row["reward_accuracy"] == 1), int(row["reward_format"] == 1)
        sums = question.sums[row["mode"]]
        places = (int(row["read_from"] == place) for place in PLACES)
        for index, value in enumerate((1, correct, formed, correct * formed, row["num_tokens"], *places)):
            sums[index] += value
        if row["mode"] == "sample" and not correct and row["answer"] is not None:
            question.votes[row["answer"]] += 1

    def settle(self) -> None:
        """Drop the texts: no question has answers in two shards."""
        for question in self._open:
            question.wrong = tuple(sorted(question.votes.values(), reverse=True))
            question.votes.clear()
        self._open.clear()

    @property
    def questions(self) -> list[Question]:
        """All questions, in the order of the rows."""
        return list(self._questions.values())


def by_slices(questions: Iterable[Question]) -> dict[str, dict[str, list[int]]]:
    """Slice -> value -> indices of its questions; slices and values sorted by name."""
    found: dict[str, dict[str, list[int]]] = {}
    for number, question in enumerate(questions):
        for name, value in question.slices.items():
            found.setdefault(name, {}).setdefault(value, []).append(number)
    return {name: _bounded(found[name]) for name in sorted(found)}


def counts(questions: list[Question], mode: str, name: str) -> NDArray:  # type: ignore[type-arg]
    """One of SUMS in a mode, [Q]."""
    import numpy as np

    return np.array([question.of(mode, name) for question in questions], dtype=np.int64)


def _slices(row: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    if row["num_options"] is not None:
        found[OPTIONS] = str(row["num_options"])
    if re.fullmatch("[A-J]", str(row["solution"])):
        found[LETTER] = str(row["solution"])
    if row["labels"]:
        found |= json.loads(str(row["labels"]))
    if row["slice"]:
        found[SLICE] = str(row["slice"])
    return found


def _bounded(values: dict[str, list[int]]) -> dict[str, list[int]]:
    """The most frequent values, sorted by name, then the rest as OTHER."""
    frequent = sorted(values, key=lambda value: (-len(values[value]), value))[:_MOST_VALUES]
    rest = sorted(number for value in values.keys() - set(frequent) for number in values[value])
    return {value: values[value] for value in sorted(frequent)} | ({OTHER: rest} if rest else {})
