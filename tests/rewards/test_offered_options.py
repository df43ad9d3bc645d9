"""How many options a question names."""

from __future__ import annotations

import pytest

from dapo_stages.data.embedded.colours import question
from dapo_stages.rewards.offered_options import num_options


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("Which?\nA. red\nB. green\nC. blue", 3),
        ("Which? (A) red (B) green", 2),
        ("Which?\nA) 1\nB) 2\nC) 3\nD) 4\nE) 5", 5),
        ("选一个。\nＡ．红\nＢ．绿", 2),
        ("选一个。\nA、红\nB、绿\nC、蓝", 3),
        ("Is plan B. good?\nA: yes\nB: no", 2),
        ("A circle. How many?", None),
        ("What is 3 + 4?", None),
        ("A. Smith asked why", None),
        ("", None),
    ],
)
def test_options_are_counted_in_their_order(problem: str, expected: int | None) -> None:
    assert num_options(problem) == expected


def test_the_embedded_task_has_four() -> None:
    assert num_options(question(0, 0).problem) == 4
