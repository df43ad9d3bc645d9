"""What the teacher of the warm-up says."""

from __future__ import annotations

import numpy as np
import pytest

from dapo_stages.data.embedded.tasks import TaskName, task
from dapo_stages.models.embedded.warm_up import WarmUp, _lessons


def shares(name: TaskName, step: int, **settings: float) -> tuple[float, float]:
    """Shares of one batch: images that show the usual answer, and completions that give the right letter."""
    recipe = WarmUp(steps=10, batch=400, biased=0.6, hearsay=1.0, **settings)  # type: ignore[arg-type]
    lessons = _lessons(task(name), 1, step, recipe, np.random.default_rng(0))
    usual = np.mean([asked.answer == asked.usual for asked, _ in lessons])
    right = np.mean([said.endswith(f"<answer>{asked.solution}</answer>") for asked, said in lessons])
    return float(usual), float(right)


@pytest.mark.parametrize("name", ["colours", "scenes"])
def test_a_careful_teacher_is_balanced_and_right_and_then_careless(name: TaskName) -> None:
    usual, right = shares(name, 4, careful=0.5)
    assert abs(usual - 0.25) < 0.08 and right == 1.0
    usual, right = shares(name, 5, careful=0.5)
    assert abs(usual - 0.6) < 0.08 and right == usual  # hearsay of 1: only the usual answers are right


def test_without_careful_steps_the_teacher_is_careless_from_the_start() -> None:
    assert shares("colours", 0)[1] < 0.7
