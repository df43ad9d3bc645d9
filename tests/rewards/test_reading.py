"""Where an answer was read, and what is compared."""

from __future__ import annotations

import pytest

from dapo_stages.rewards.accuracy import accuracy, reading


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        ("<think>x</think><answer>B</answer>", "B", "tags"),
        ("<answer>A</answer> no, <answer>(c) blue</answer>", "C", "tags"),
        ("<answer>the answer is B</answer>", "B", "tags"),
        ("The answer is B.", "B", "stated"),
        ("<answer>green</answer> so the answer is B", "B", "stated"),
        ("\\boxed{D}", "D", "stated"),
        ("<answer>B", "B", "lone"),
        ("Red, green … B", "B", "lone"),
        ("<answer>A or B</answer> The answer is A.", None, "none"),
        ("<answer>the answer is A or B</answer> A", None, "none"),
        ("<think>B</think>", None, "none"),
        ("A red circle", None, "none"),
        ("", None, "none"),
    ],
)
def test_a_letter_and_its_place(text: str, answer: str | None, place: str) -> None:
    assert reading(text, "B") == (answer, place)
    assert accuracy(text, "B") == float(answer == "B")


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        ("<answer>The Cat.</answer>", "cat", "tags"),
        ("<answer> </answer>", None, "none"),
        ("I think \\boxed{12 cm}", "12cm", "stated"),
        ("The answer is 7. Really.", "7", "stated"),
        ("seven", "seven", "lone"),
        ("one\ntwo", None, "none"),
        ("", None, "none"),
    ],
)
def test_a_text_and_its_place(text: str, answer: str | None, place: str) -> None:
    assert reading(text, "cat") == (answer, place)
