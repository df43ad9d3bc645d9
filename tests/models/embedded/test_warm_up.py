"""What the teacher of the warm-up says."""

from __future__ import annotations

import numpy as np
import pytest

from dapo_stages.data.embedded import places
from dapo_stages.data.embedded.tasks import TaskName, captions, task
from dapo_stages.models.embedded.warm_up import WarmUp, _asked, _described, warm_up


def shares(name: TaskName, step: int, **settings: float) -> tuple[float, float]:
    """Shares of one batch: images that show the usual answer, and completions that give the right letter."""
    recipe = WarmUp(steps=10, batch=400, biased=0.6, hearsay=1.0, **settings)  # type: ignore[arg-type]
    lessons = _asked(task(name), 1, step, recipe, np.random.default_rng(0))
    biased = None if step < recipe.careful * recipe.steps else recipe.biased
    drawn = [task(name).question(1 + 7_919, step * 400 + i, biased=biased) for i in range(400)]
    assert [lesson.problem for lesson in lessons] == [asked.problem for asked in drawn]
    usual = np.mean([asked.answer == asked.usual for asked in drawn])
    said = zip(lessons, drawn, strict=True)
    right = np.mean([lesson.completion.endswith(f"<answer>{asked.solution}</answer>") for lesson, asked in said])
    return float(usual), float(right)


@pytest.mark.parametrize("name", ["colours", "places", "scenes"])
def test_a_careful_teacher_is_balanced_and_right_and_then_careless(name: TaskName) -> None:
    usual, right = shares(name, 4, careful=0.5)
    assert abs(usual - 0.25) < 0.08 and right == 1.0
    usual, right = shares(name, 5, careful=0.5)
    assert abs(usual - 0.6) < 0.08 and right == usual  # hearsay of 1: only the usual answers are right


def test_without_careful_steps_the_teacher_is_careless_from_the_start() -> None:
    assert shares("colours", 0)[1] < 0.7


def test_images_are_described_before_anything_is_asked_and_then_beside_questions() -> None:
    recipe = WarmUp(steps=10, batch=20, careful=0.5, captions=0.2)
    described = [_described(captions("places"), 1, step, recipe) for step in range(10)]
    asked = [_asked(task("places"), 1, step, recipe, np.random.default_rng(0)) for step in range(10)]
    assert [len(lessons) for lessons in described] == [20, 20, *[4] * 8]  # a fifth of 20
    assert [len(lessons) for lessons in asked] == [0, 0, *[16] * 8]
    all_of_them = [lesson for lessons in described for lesson in lessons]
    assert {lesson.problem for lesson in all_of_them} == {places.WHAT, places.WHERE}
    assert len({lesson.image.tobytes() for lesson in all_of_them}) == 40 + 32  # none twice


def test_without_captions_all_are_questions() -> None:
    recipe = WarmUp(steps=10, batch=20)
    assert not _described(captions("places"), 1, 0, recipe)
    assert len(_asked(task("colours"), 1, 0, recipe, np.random.default_rng(0))) == 20


def test_a_recipe_with_captions_needs_them() -> None:
    with pytest.raises(ValueError, match="the task has none"):
        warm_up(None, None, task("colours"), 1, WarmUp(captions=0.5))
