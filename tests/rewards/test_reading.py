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
        ("<answer>B", "B", "tags"),
        ("<think>red\nB", "B", "unclosed"),
        ("<think>red <answer>B</answer>", "B", "unclosed"),
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


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("<think>red</think><answer>B</answer>", 1.0),
        ("<think>red <answer>B</answer> and", 1.0),
        ("<think>red</think><answer>B", 0.0),
        ("<think>red</think>The answer is B", 0.0),
        ("<think>red\nB", 0.0),
        ("<think><answer>A</answer></think>The answer is B", 0.0),
    ],
)
def test_of_a_completion_that_was_cut_off_only_a_closed_block_counts(text: str, paid: float) -> None:
    assert accuracy(text, "B", closed=True) == paid
    assert accuracy(text, "B") == 1.0
    assert reading(text, "B", closed=True).answer == ("B" if paid else None)
