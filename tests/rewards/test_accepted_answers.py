"""Several accepted answers, grades, and sets of letters with partial credit."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.data.accepted import accepted_answers_of
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.rewards.accuracy import accuracy, reading
from dapo_stages.rewards.answers import accepted_answers


def answer(text: str) -> str:
    return f"<think>Let me look.</think>\n<answer>{text}</answer>"


@pytest.mark.parametrize(
    ("cell", "solution"),
    [
        (["crimson", "red"], '["crimson", "red"]'),
        (["red", "red", "no idea"], '["red", "no idea"]'),
        (["7"], "7"),
        (["灰色", "灰"], '["灰色", "灰"]'),
        ([3, 3.0, "three"], '["3", "three"]'),
        (["A", "C"], "A, C"),
        (["C", "A"], "A, C"),
        (["C", "A", "A"], '{"C": 1.0, "A": 1.0}'),
        (["c", "e"], '{"C": 1.0, "E": 1.0}'),
        ({"sofa": 1, "couch": 0.5}, '{"sofa": 1.0, "couch": 0.5}'),
        ({"sofa": 1.0}, "sofa"),
        ({"answer": ["net", "nets"], "answer_confidence": ["yes", "no"]}, '["net", "nets"]'),
        ([{"answer": "net", "answer_confidence": "yes"}, {"answer": "nets"}], '["net", "nets"]'),
        ([{"answer": "net", "score": 1}, {"answer": "trap", "score": 0.3}], '{"net": 1.0, "trap": 0.3}'),
    ],
)
def test_a_cell_becomes_accepted_answers(cell: Any, solution: str) -> None:
    assert accepted_answers_of(cell) == solution


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ([], "no accepted answer"),
        ([None, ""], "no accepted answer"),
        ({"sofa": 0}, "no accepted answer"),
        ({"sofa": 2}, "expected a grade from 0 to 1, got 2"),
        ({"sofa": "good"}, "expected a grade from 0 to 1, got 'good'"),
    ],
)
def test_a_cell_without_an_accepted_answer_says_so(cell: Any, problem: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        accepted_answers_of(cell)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("solution", "grades"),
    [
        ('["crimson", "red"]', {"crimson": 1.0, "red": 1.0}),
        ('{"sofa": 1, "couch": 0.5}', {"sofa": 1.0, "couch": 0.5}),
        ('{"sofa": 7, "couch": -1}', {"sofa": 1.0, "couch": 0.0}),
        ("['A', 'C']", {"['A', 'C']": 1.0}),
        ('["A", "C"]', {'["A", "C"]': 1.0}),
        ("[1, 2]", {"[1, 2]": 1.0}),
        ("{1, 2}", {"{1, 2}": 1.0}),
        ('["not closed"', {'["not closed"': 1.0}),
        ("B", {"B": 1.0}),
    ],
)
def test_a_solution_accepts(solution: str, grades: dict[str, float]) -> None:
    assert accepted_answers(solution) == grades


@pytest.mark.parametrize(
    ("said", "solution", "paid"),
    [
        ("red", '["crimson", "red"]', 1.0),
        ("Crimson.", '["crimson", "red"]', 1.0),
        ("green", '["crimson", "red"]', 0.0),
        ("crimson red", '["crimson", "red"]', 0.0),
        ("0.5", '["1/2", "50%"]', 1.0),
        ("sofa", '{"sofa": 1, "couch": 0.5}', 1.0),
        ("a couch", '{"sofa": 1, "couch": 0.5}', 0.5),
        ("chair", '{"sofa": 1, "couch": 0.5}', 0.0),
        ("12 cm", '["12 centimeters", "0.12 m"]', 1.0),
    ],
)
def test_the_best_accepted_answer_counts(said: str, solution: str, paid: float) -> None:
    assert accuracy(answer(said), solution) == paid


@pytest.mark.parametrize(
    ("said", "exact", "partial"),
    [
        ("A, C", 1.0, 1.0),
        ("AC", 1.0, 1.0),
        ("A and C", 1.0, 1.0),
        ("C、A", 1.0, 1.0),
        ("A", 0.0, 0.5),
        ("C", 0.0, 0.5),
        ("A, B", 0.0, 0.0),
        ("A, B, C", 0.0, 0.0),
        ("ABCD", 0.0, 0.0),
        ("B", 0.0, 0.0),
        ("A or C", 0.0, 0.0),
        ("none", 0.0, 0.0),
    ],
)
def test_a_set_of_letters_may_give_partial_credit(said: str, exact: float, partial: float) -> None:
    """Choosing every option never pays."""
    assert accuracy(answer(said), "A, C") == exact
    assert accuracy(answer(said), "A, C", partial_credit=True) == partial


def test_the_answer_is_read_as_the_first_accepted_one_is() -> None:
    assert reading(answer("Red."), '["crimson", "red"]').answer == "red"
