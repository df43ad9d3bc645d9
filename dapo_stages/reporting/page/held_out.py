"""The same held-out questions over the iterations: when each turned right or wrong, and what was answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dapo_stages.handoff.shards import Row
from dapo_stages.reporting.iteration.asked import Asked
from dapo_stages.reporting.iteration.browse import LONGEST
from dapo_stages.reporting.iteration.samples import image_of
from dapo_stages.terminal.safe_text import one_line, visible

EVALUATIONS = 24  # of a run whose answers the page shows
MOST_BYTES = 3_000_000  # of all questions
COURSES = {
    "turned right": "wrong at first, right in the end",
    "turned wrong": "right at first, wrong in the end",
    "wavers": "the same at first and in the end, but not in between",
    "always wrong": "always wrong",
    "always right": "always right",
}


def spread(iterations: Sequence[int], most: int = EVALUATIONS) -> list[int]:
    """All of them, or the first, the last and others at even distances between."""
    if len(iterations) <= most:
        return list(iterations)
    return [iterations[round(index * (len(iterations) - 1) / (most - 1))] for index in range(most)]


def course(right: Mapping[int, bool]) -> tuple[str, int | None]:
    """How a question went, one of COURSES, and for those that turned the iteration from which it stayed so."""
    values = list(right.values())
    first, last = values[0], values[-1]
    if all(value == first for value in values):
        return f"always {'right' if first else 'wrong'}", None
    if first == last:
        return "wavers", None
    since = next(i for i in range(len(values)) if all(value == last for value in values[i:]))
    return f"turned {'right' if last else 'wrong'}", list(right)[since]


def is_right(one: Asked) -> bool | None:
    """Whether a question was answered right: greedily, or else by more than half of the samples; None: not asked."""
    if one["greedy"] is not None:
        return bool(one["greedy"]["right"])
    return bool(2 * one["right"] > one["samples"]) if one["samples"] else None


def over_iterations(
    evaluations: Mapping[int, Sequence[Asked]], row_of: Callable[[str], Row | None], most: int = MOST_BYTES
) -> list[dict[str, Any]]:
    """The questions, those that turned first, as far as they fit. `row_of`: the dataset's row of a question."""
    answers: dict[str, dict[int, Asked]] = {}
    for iteration, asked in evaluations.items():
        for one in asked:
            answers.setdefault(one["id"], {})[iteration] = one
    listed = []
    for name, of_question in answers.items():
        right = {iteration: ok for iteration, one in of_question.items() if (ok := is_right(one)) is not None}
        if right:
            listed.append((*course(right), name, right))
    order = list(COURSES)
    listed.sort(key=lambda one: (order.index(one[0]), one[1] or 0, one[2]))
    found: list[dict[str, Any]] = []
    for kind, turned, name, right in listed:
        question = _question(name, answers[name], right, row_of(name)) | {"kind": kind, "turned": turned}
        most -= len(json.dumps(question, ensure_ascii=False).encode("utf-8", "replace"))
        if most < 0 and found:
            break
        found.append(question)
    return found


def _question(name: str, answers: Mapping[int, Asked], right: Mapping[int, bool], row: Row | None) -> dict[str, Any]:
    latest = list(answers.values())[-1]
    if row is not None and row["solution"] != latest["solution"]:  # of other data
        row = None
    return {
        "id": one_line(name),
        "slice": latest["slice"],
        "solution": visible(latest["solution"][:LONGEST]),
        "problem": None if row is None else visible(row["problem"][:LONGEST]),
        "images": [] if row is None else [image_of(image) for image in row["images"] or []],
        "answers": [
            {"iteration": iteration, "ok": ok, **{key: answers[iteration][key] for key in _SHOWN}}
            for iteration, ok in right.items()
        ],
    }


_SHOWN = ("greedy", "blank", "samples", "right")
