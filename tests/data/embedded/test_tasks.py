"""The embedded tasks: images, questions and answers, and that nothing else gives an answer away."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.commands import ROOT

from dapo_stages.config import load_config
from dapo_stages.data.embedded import scenes
from dapo_stages.data.embedded.drawing import COLOURS
from dapo_stages.data.embedded.questions import Question
from dapo_stages.data.embedded.tasks import TaskName, task
from dapo_stages.errors import ConfigError
from dapo_stages.rewards.format import format_reward

MANY = [scenes.question(5, index, shuffled=True) for index in range(600)]


def colour_at(pixels: np.ndarray) -> np.ndarray:
    """For each pixel the index of the nearest color, -1 for gray ones."""
    saturated = pixels.max(-1) - pixels.min(-1) > 70
    distance = np.abs(pixels[..., None, :] - np.array(list(COLOURS.values()))).sum(-1)
    return np.where(saturated, distance.argmin(-1), -1)


def center(question: Question, colour: str) -> tuple[float, float]:
    """Mean position (x, y) of the pixels of a color."""
    found = colour_at(np.asarray(question.image, dtype=int)) == list(COLOURS).index(colour)
    y, x = np.nonzero(found)
    return float(x.mean()), float(y.mean())


@pytest.mark.parametrize("name", ["colours", "places", "scenes"])
def test_questions_are_a_pure_function_of_seed_and_index(name: TaskName) -> None:
    draw = task(name).question
    first, again, other = draw(1, 7), draw(1, 7), draw(2, 7)
    assert first.image.tobytes() == again.image.tobytes() and first.problem == again.problem
    assert first.image.tobytes() != other.image.tobytes()
    assert first.image.size == (task(name).SIZE,) * 2


@pytest.mark.parametrize("name", ["colours", "places", "scenes"])
def test_every_completion_is_well_formed_and_answers_by_its_letter(name: TaskName) -> None:
    for index in range(50):
        asked = task(name).question(3, index)
        for thought in range(len(asked.thoughts[asked.answer])):
            text = asked.completion(asked.answer, thought)
            assert format_reward(text) == 1 and text.endswith(f"<answer>{asked.solution}</answer>")
        assert f"{asked.solution}. {asked.answer}" in asked.problem.splitlines()


def test_the_image_shows_the_object_on_its_side() -> None:
    pairs = [q for q in MANY if q.kind != "count"]
    assert len(pairs) > 300
    for asked in pairs:
        subject = next(word for word in scenes.USUAL[asked.kind] if f" {word} " in asked.problem)
        colour, side = (asked.answer, subject) if asked.kind == "colour" else (subject, asked.answer)
        x, y = center(asked, colour)
        others = [center(asked, name) for name in COLOURS if name != colour and has_colour(asked, name)]
        assert len(others) == 1, asked.problem
        dx, dy = x - others[0][0], y - others[0][1]
        assert {"left": -dx, "right": dx, "upper": -dy, "lower": dy}[side] > 0


def has_colour(asked: Question, colour: str) -> bool:
    """Whether more than a few stray pixels have a color."""
    found = colour_at(np.asarray(asked.image, dtype=int)) == list(COLOURS).index(colour)
    return int(found.sum()) > 40


def test_the_image_shows_as_many_as_the_answer_says() -> None:
    for asked in (q for q in MANY if q.kind == "count"):
        colored = colour_at(np.asarray(asked.image, dtype=int)) >= 0
        cells = colored.reshape(2, 28, 2, 28).sum((1, 3)) > 40
        assert cells.sum() == ("one", "two", "three", "four").index(asked.answer) + 1


def test_words_say_nothing_about_the_answer() -> None:
    agree = np.mean([asked.answer == asked.usual for asked in MANY])
    letters = Counter(asked.solution for asked in MANY)
    assert abs(agree - 0.25) < 0.06 and all(abs(letters[letter] - 150) < 45 for letter in "ABCD")
    assert len({asked.problem.partition("\n")[2] for asked in MANY}) == 3 * 24  # every order of each kind's options


def test_a_bias_makes_the_usual_answer_as_frequent_as_it_says() -> None:
    drawn = [scenes.question(5, index, biased=0.8) for index in range(400)]
    assert abs(np.mean([asked.slice.startswith("prior-consistent") for asked in drawn]) - 0.8) < 0.07
    assert {asked.slice.partition(", ")[2] for asked in drawn} == set(scenes.USUAL)


def test_options_have_one_order_unless_shuffled() -> None:
    orders = {asked.problem.partition("\n")[2] for asked in (scenes.question(5, index) for index in range(60))}
    assert len(orders) == 3  # one of each kind
    with pytest.raises(
        ConfigError, match=r"data\.synthetic: shuffled is true, but the options of task colours have a f"
    ):
        load_config(ROOT / "pipelines/embedded.yaml", ["data.synthetic.shuffled=true"])
    assert load_config(ROOT / "pipelines/scenes.yaml", ["data.synthetic.shuffled=true"]).data.synthetic.shuffled
