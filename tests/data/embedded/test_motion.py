"""The task `motion`: its answers agree with what the pixels show, and no frame alone gives them away."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.commands import ROOT

from dapo_stages.config import load_config
from dapo_stages.data.embedded import motion
from dapo_stages.data.embedded.questions import Question
from dapo_stages.data.sources import open_source
from dapo_stages.rewards.format import format_reward

MANY = [motion.question(5, index) for index in range(400)]
WAYS = ("left", "right", "up", "down")


def centers(asked: Question) -> np.ndarray:
    """Where the square is in each frame, by its saturated pixels: [frames, (x, y)]."""
    found = []
    for frame in asked.frames:
        pixels = np.asarray(frame, dtype=int)
        y, x = np.nonzero(pixels.max(-1) - pixels.min(-1) > 70)
        assert len(x) > 60
        found.append((x.mean(), y.mean()))
    return np.array(found)


def test_the_square_goes_the_way_that_is_the_answer() -> None:
    for asked in MANY:
        places = centers(asked)
        dx, dy = places[-1] - places[0]
        assert {"left": -dx, "right": dx, "up": -dy, "down": dy}[asked.answer] > 14
        assert min(abs(dx), abs(dy)) < 4
        assert all(frame.size == (56, 56) for frame in asked.frames) and len(asked.frames) == 4
        assert asked.image is asked.frames[0]


def test_ways_and_colors_are_balanced_and_independent() -> None:
    pairs = Counter((asked.columns["colour"], asked.answer) for asked in MANY)
    assert len(pairs) == 16 and min(pairs.values()) > 10
    assert {asked.answer for asked in MANY if asked.answer == asked.usual} == set(WAYS)


@pytest.mark.parametrize("frame", [0, -1])
def test_a_single_frame_leaves_two_ways(frame: int) -> None:
    """In each quarter two ways begin, and two end, which are equally frequent, wherever in it the square is."""
    places = np.array([centers(asked)[frame] for asked in MANY])
    right = places > 28
    for quarter in ((False, False), (False, True), (True, False), (True, True)):
        here = [index for index in range(len(MANY)) if tuple(right[index]) == quarter]
        ways = Counter(MANY[index].answer for index in here)
        ends = {("right", "left")[right_] for right_ in quarter[:1]} | {("down", "up")[low] for low in quarter[1:]}
        if frame == -1:
            ends = set(WAYS) - ends
        assert set(ways) == ends and min(ways.values()) > 0.35 * len(here)
        across = [abs(places[index] - 28) for index in here if MANY[index].answer in ("left", "right")]
        others = [abs(places[index] - 28) for index in here if MANY[index].answer in ("up", "down")]
        assert np.allclose(np.mean(across, 0), np.mean(others, 0), atol=1.5)


def test_a_question_is_a_function_of_seed_and_index() -> None:
    first, again, other = motion.question(1, 7), motion.question(1, 7), motion.question(2, 7)
    assert [one.tobytes() for one in first.frames] == [one.tobytes() for one in again.frames]
    assert [one.tobytes() for one in first.frames] != [one.tobytes() for one in other.frames]
    with pytest.raises(ValueError, match="fixed order"):
        motion.question(1, 7, shuffled=True)


def test_completions_are_well_formed_and_a_bias_is_kept() -> None:
    for asked in MANY[:20]:
        for thought in range(len(motion.THOUGHTS)):
            text = asked.completion(asked.answer, thought)
            assert format_reward(text) == 1 and text.endswith(f"<answer>{asked.solution}</answer>")
    biased = [motion.question(5, index, biased=0.9) for index in range(100)]
    assert sum(asked.answer == asked.usual for asked in biased) > 75


def test_the_configuration_asks_for_it() -> None:
    config = load_config(ROOT / "pipelines/motion.yaml")
    row = next(open_source(config).rows("train"))
    assert config.data.synthetic.task == "motion" and len(row.values["videos"][0]) == 4
