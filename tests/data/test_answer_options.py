"""Options in the forms that public datasets have, and solutions that mean one of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dapo_stages.data.answer_options import (
    BadOptions,
    SolutionFormat,
    letters_of,
    options_of,
    shown_order,
    with_options,
)

COLORS = ["red", "green", "blue", "yellow"]


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(COLORS, id="list"),
        pytest.param(json.dumps(COLORS), id="JSON"),
        pytest.param(str(COLORS), id="Python, as MMMU has it"),
        pytest.param("A. red\nB. green\nC. blue\nD. yellow", id="labeled lines"),
        pytest.param("A. red; B. green; C. blue; D. yellow", id="labeled, as WeMath has it"),
        pytest.param("(a) red (b) green (c) blue (d) yellow", id="small letters, as MMVP has it"),
        pytest.param("red\ngreen\nblue\nyellow", id="lines"),
        pytest.param([f"{letter}. {color}" for letter, color in zip("ABCD", COLORS, strict=True)], id="labeled list"),
        pytest.param([f"({letter}) {color}" for letter, color in zip("ABCD", COLORS, strict=True)], id="brackets"),
        pytest.param(dict(zip("ABCD", COLORS, strict=True)), id="object"),
        pytest.param(dict(zip("DCBA", reversed(COLORS), strict=True)) | {"E": None}, id="object in another order"),
        pytest.param(json.dumps(dict(zip("ABCD", COLORS, strict=True))), id="JSON object"),
        pytest.param({"text": COLORS, "label": list("ABCD")}, id="texts and labels, as ARC has them"),
        pytest.param([{"label": "x", "text": color} for color in COLORS], id="objects"),
    ],
)
def test_options_are_read_from_one_column(cell: Any) -> None:
    assert options_of({"choices": cell}, "choices") == COLORS


def test_options_are_read_from_a_column_for_each() -> None:
    row = {"A": "red", "B": "green", "C": float("nan"), "D": None, "hint": "x"}
    assert options_of(row, ("A", "B", "C", "D")) == ["red", "green"]
    assert options_of({"choices": {"a": 1, "b": 2.0}}, ("choices.a", "choices.b")) == ["1", "2"]


@pytest.mark.parametrize("cell", [None, [], "[]", ["only"], "", float("nan"), {}, {"A": None}])
def test_a_row_may_have_no_options(cell: Any) -> None:
    assert options_of({"choices": cell}, "choices") == []


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (3, "the options are a int, expected a list or text"),
        (["red", "", "blue"], "option B is empty"),
        ([str(number) for number in range(11)], "11 options, but the letters of answers end at J"),
        ({"first": "red", "second": "green"}, "options with the keys first, second, expected A, B, C, …"),
    ],
)
def test_options_that_cannot_be_read_say_why(cell: Any, problem: str) -> None:
    with pytest.raises(BadOptions) as caught:
        options_of({"choices": cell}, "choices")
    assert str(caught.value) == problem


def test_options_are_shown_below_a_question_that_does_not_show_them() -> None:
    assert with_options("Which?\n", COLORS[:2]) == "Which?\nA. red\nB. green"
    shown = "Which? (A) red (B) green"
    assert with_options(shown, COLORS[:2]) == shown
    assert with_options("Plan B. works?", ["yes", "no"]) == "Plan B. works?\nA. yes\nB. no"
    assert with_options("Why?", []) == "Why?"


@pytest.mark.parametrize(
    ("form", "solution", "letter"),
    [
        ("letter", "C", "C"),
        ("letter", "(c)", "C"),
        ("letter", "C. blue", "C"),
        ("letter", "<answer>C</answer>", "C"),
        ("letter", "blue", "C"),
        ("letter", "E", None),
        ("letter", "7", None),
        ("index", 2, "C"),
        ("index", "2", "C"),
        ("index", 2.0, "C"),
        ("index", "blue", "C"),
        ("index_from_1", 3, "C"),
        ("text", "blue", "C"),
        ("text", "Blue.", "C"),
        ("text", " blue ", "C"),
        ("text", "C", "C"),
        ("text", "pink", None),
        ("letter", ["A", "C"], "A, C"),
        ("letter", "['C', 'A']", "A, C"),
        ("letter", "AC", "A, C"),
        ("letter", "A, C", "A, C"),
        ("index", [0, 2], "A, C"),
        ("text", ["red", "blue"], "A, C"),
        ("text", ["red", "pink"], None),
        ("letter", ["B"], "B"),
    ],
)
def test_a_solution_becomes_the_letter_of_its_option(form: SolutionFormat, solution: Any, letter: str | None) -> None:
    assert letters_of(solution, COLORS, COLORS, form) == letter


def test_options_that_are_letters_or_numbers_themselves() -> None:
    """As AI2D has them: labels of the image. What the solution is decides."""
    labels = ["D", "A", "C", "B"]
    assert letters_of("A", labels, labels, "text") == "B"
    assert letters_of("A", labels, labels, "letter") == "A"
    numbers = ["2", "3", "4", "1"]
    assert letters_of("1", numbers, numbers, "text") == "D"
    assert letters_of("1", numbers, numbers, "index") == "B"


def test_an_index_counts_in_the_order_of_the_column_and_a_letter_in_that_of_the_question() -> None:
    shown = shown_order("Which? A. blue B. red", ["red", "blue"])
    assert shown == ["blue", "red"]
    assert letters_of(0, ["red", "blue"], shown, "index") == "B"
    assert letters_of("A", ["red", "blue"], shown, "letter") == "A"


def test_an_index_beyond_the_options_is_named() -> None:
    with pytest.raises(BadOptions, match="the solution is option 4 of 4 options"):
        letters_of(4, COLORS, COLORS, "index")
    with pytest.raises(BadOptions, match="the solution is option 0 of 4 options"):
        letters_of(0, COLORS, COLORS, "index_from_1")
