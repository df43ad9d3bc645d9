"""Several accepted answers in one solution, as rewards read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dapo_stages.data.cells import as_text
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.rewards.answers import parse_solution
from dapo_stages.rewards.offered_options import LETTERS

_ANSWER = ("answer", "text", "value", "content")  # of an accepted answer that is an object
_GRADE = ("grade", "score", "weight")


def accepted_answers_of(solution: list[Any] | tuple[Any, ...] | Mapping[str, Any]) -> str:
    """A list of accepted answers, or an object {answer: grade}, as a solution.

    A list of different letters in upper case is a set of options ("A, C"). All else is JSON: a list of different
    answers if each is fully right, else an object with a grade from 0 to 1 for each; also of letters that annotators
    read in the image (["c", "c", "e"]), of which a list would be a set.
    Raises UnusableRow if there is none, or a grade is not from 0 to 1.
    """
    if isinstance(solution, Mapping):  # of lists, which is how datasets stores a list of objects
        solution = next((solution[key] for key in _ANSWER if isinstance(solution.get(key), list)), solution)
    pairs = list(solution.items()) if isinstance(solution, Mapping) else [_graded(one) for one in solution]
    grades: dict[str, float] = {}
    for answer, grade in pairs:
        if (text := parse_solution(as_text(answer))) and grade is not None:
            grades[text] = max(_number(grade), grades.get(text, 0.0))
    if not grades or not any(grades.values()):
        raise UnusableRow("no accepted answer")
    letters = len(grades) > 1 and grades.keys() <= set(LETTERS)
    if letters and sorted(as_text(answer) for answer, _ in pairs) == sorted(grades):
        return ", ".join(sorted(grades))
    if set(grades.values()) == {1.0} and not letters:
        return next(iter(grades)) if len(grades) == 1 else json.dumps(list(grades), ensure_ascii=False)
    return json.dumps(grades, ensure_ascii=False)


def _graded(one: Any) -> tuple[Any, Any]:
    if not isinstance(one, Mapping):
        return one, 1.0
    answer = next((one[key] for key in _ANSWER if one.get(key) is not None), None)
    return answer, next((one[key] for key in _GRADE if one.get(key) is not None), 1.0)


def _number(grade: Any) -> float:
    try:
        value = float(grade)
    except (TypeError, ValueError):
        raise UnusableRow(f"expected a grade from 0 to 1, got {str(grade)[:40]!r}") from None
    if not 0 <= value <= 1:
        raise UnusableRow(f"expected a grade from 0 to 1, got {value:g}")
    return value
