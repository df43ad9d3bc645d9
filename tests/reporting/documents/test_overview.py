"""What is left with the image blanked, and what has fallen, in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.reporting.documents.overview import fallen, without_images

START = {"greedy_accuracy": 0.4, "blank_accuracy": 0.3}
END = {"greedy_accuracy": 0.9, "blank_accuracy": 0.27}


@pytest.mark.parametrize(
    ("now", "start", "said"),
    [
        (END, START, "27.0% (30% of the greedy accuracy) of the held-out questions are answered right; "
         "at the start 30.0% (75% of the greedy accuracy)."),
        (END, None, "27.0% (30% of the greedy accuracy) of the held-out questions are answered right."),
        ({"blank_accuracy": 0.27}, {"greedy_accuracy": 0.4}, "27.0% of the held-out questions are answered right."),
        ({"blank_accuracy": 0.0, "greedy_accuracy": 0.0}, {}, "0.0% of the held-out questions are answered right."),
    ],
)  # fmt: skip
def test_it_is_told_now_and_at_the_start(now: dict[str, float], start: dict[str, float] | None, said: str) -> None:
    assert without_images(now, start) == f"With the image blanked {said}"


def test_nothing_is_told_of_what_was_not_measured() -> None:
    assert without_images({"greedy_accuracy": 0.9, "blank_accuracy": None}, START) is None


def evaluated(iteration: int, **accuracies: float | None) -> dict[str, Any]:
    """Slices with an accuracy and a confidence interval of 0.1 to both sides."""
    parts = {
        name: {"greedy_accuracy": value, "intervals": {"greedy_accuracy": value and [value - 0.1, value + 0.1]}}
        for name, value in accuracies.items()
    }
    return {"iteration": iteration, "eval": {"by_slice": parts}}


def test_an_answer_that_is_lost_is_told_while_others_gain() -> None:
    course = [
        evaluated(0, sevens=0.5, nines=0.4),
        {"iteration": 10},
        evaluated(20, sevens=0.6, nines=0.76),
        evaluated(40, sevens=0.9, nines=0.17),
    ]
    said = "Held-out accuracy has fallen by half or more: nines from 76.0% at iteration 20 to 17.0%."
    assert fallen(course) == said
    assert fallen(course[:3]) is None
    hostile = [evaluated(1, **{"\x1b[31mnines": 0.9}), evaluated(2, **{"\x1b[31mnines": 0.1})]
    assert "\x1b" not in (fallen(hostile) or "\x1b")


@pytest.mark.parametrize(
    "now",
    [
        evaluated(2, nines=0.45),  # more than half is left
        evaluated(2, nines=None),  # not evaluated greedily
        evaluated(2, eights=0.1),  # other slices
        {"iteration": 2, "eval": {}},
        {"iteration": 2, "eval": {"by_slice": {"nines": {"greedy_accuracy": 0.1}}}},  # of a version without intervals
    ],
)
def test_nothing_is_told_of_what_stayed_or_was_not_measured(now: dict[str, Any]) -> None:
    assert fallen([evaluated(1, nines=0.8), now]) is None
    assert fallen([now]) is None and fallen([]) is None


def test_nothing_is_told_within_confidence_intervals() -> None:
    assert fallen([evaluated(1, nines=0.2), evaluated(2, nines=0.05)]) is None
