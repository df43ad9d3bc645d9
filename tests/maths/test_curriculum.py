"""The curriculum: success rates, chances and replacements, worked by hand."""

from collections import Counter

import numpy as np
import pytest

from dapo_stages.maths.curriculum import chances, of_rows, success_rates, swap
from dapo_stages.maths.schedule import prompts_of

NEW = float("nan")


def test_a_rate_is_that_of_the_last_visits() -> None:
    visits = [("a", 1, 4), ("b", 2, 4), ("a", 4, 4), ("a", 0, 8)]
    assert success_rates(visits, 2) == {"a": 4 / 12, "b": 0.5}
    assert success_rates(visits, 1) == {"a": 0.0, "b": 0.5}
    assert success_rates(visits, 9) == {"a": 5 / 16, "b": 0.5}
    assert success_rates([], 2) == {}


def test_the_chance_falls_in_straight_lines_from_the_target() -> None:
    found = chances([0, 0.25, 0.5, 0.75, 1], target=0.5, floor=0.1)
    assert found == pytest.approx([0.1, 0.55, 1, 0.55, 0.1])


def test_a_target_off_the_middle_has_its_floor_at_the_far_end_only() -> None:
    # 0 is 0.8 away, 1 is 0.2 away: 0.1 + 0.9 · (1 - 0.25)
    assert chances([0, 0.4, 0.8, 1], target=0.8, floor=0.1) == pytest.approx([0.1, 0.55, 1, 0.775])
    assert chances([0, 1], target=1.0, floor=0.5) == pytest.approx([0.5, 1])


def test_what_was_not_asked_has_no_rate_and_no_chance() -> None:
    rates = of_rows({"b": 0.5, "gone": 0.1}, ["a", "b", "c"])
    np.testing.assert_array_equal(rates, [NEW, 0.5, NEW])
    np.testing.assert_array_equal(chances(rates, 0.5, 0.1), [NEW, 1, NEW])


def test_unseen_rows_come_as_they_come() -> None:
    rows = np.array([4, 0, 2])
    np.testing.assert_array_equal(swap(rows, np.full(6, NEW), [], np.random.default_rng(0)), rows)
    known_elsewhere = np.array([NEW, 1, NEW, 1, NEW, 1])
    np.testing.assert_array_equal(swap(rows, known_elsewhere, [], np.random.default_rng(0)), rows)


def test_turns_are_kept_by_chance_and_taken_over_by_chance() -> None:
    """Row 0 stays in 1/4 of cases; else 1 (chance 1) and 2 (chance 1/2) share 3/4 as 2 : 1; 3 is unseen."""
    known = np.array([0.25, 1.0, 0.5, NEW])
    rng = np.random.default_rng(0)
    found = Counter(int(swap(np.array([0]), known, [], rng)[0]) for _ in range(8000))
    assert {row: found[row] / 8000 for row in range(4)} == pytest.approx({0: 0.25, 1: 0.5, 2: 0.25, 3: 0}, abs=0.02)


def test_a_row_of_an_earlier_round_has_no_turn() -> None:
    known = np.array([1.0, 1.0, 1.0, NEW])
    for seed in range(20):
        assert swap(np.array([0, 3]), known, [0, 1], np.random.default_rng(seed)).tolist() == [2, 3]
        assert swap(np.array([1]), known, {1, 2}, np.random.default_rng(seed)).tolist() == [0]


def test_where_nothing_is_left_turns_stay() -> None:
    never = np.full(3, 1e-12)
    assert swap(np.array([0, 1, 2]), never, [], np.random.default_rng(0)).tolist() == [0, 1, 2]
    one_spare = np.array([1e-12, 1e-12, 1.0])
    assert swap(np.array([0, 1]), one_spare, [], np.random.default_rng(0)).tolist() == [2, 1]


def test_the_result_is_pure_and_has_no_repeats() -> None:
    known = chances(np.random.default_rng(1).random(50), 0.5, 0.1)
    rows = prompts_of(50, 0, 1, 0, 20)
    found = [swap(rows, known, given, np.random.default_rng(5)) for given in ([1, 2, 3], [3, 2, 1], {2, 1, 3})]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert len(set(found[0].tolist())) == 20 and not set(found[0].tolist()) & {1, 2, 3}


def test_over_many_iterations_the_middling_are_asked_more_often_and_nobody_never() -> None:
    rates = np.repeat([0.0, 0.25, 0.5], 20)
    known = chances(rates, 0.5, 0.1)
    asked: Counter[float] = Counter()
    for iteration in range(1, 301):
        rows = swap(prompts_of(60, 3, iteration, 0, 12), known, [], np.random.default_rng([3, iteration]))
        asked.update(rates[rows].tolist())
    assert asked[0.5] > 1.5 * asked[0.25] > 2 * asked[0.0] > 0
    assert sum(asked.values()) == 3600
