"""What is left of an evaluation with the image blanked, in a sentence."""

from __future__ import annotations

import pytest

from dapo_stages.reporting.documents.overview import without_images

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
