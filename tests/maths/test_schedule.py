"""Which prompts, which learning rate, which mini-batches: properties and values worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapo_stages.maths.schedule import Schedule, learning_rate_factor, mini_batches, order_of_pass, prompts_of

sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(0, 99))
def test_round_zero_goes_through_the_table_once_per_epoch(num_prompts: int, count: int, seed: int) -> None:
    iterations = 3 * num_prompts // count + 1
    stream = np.concatenate([prompts_of(num_prompts, seed, i, 0, count) for i in range(1, iterations + 1)])
    for epoch in range(3):
        one_pass = stream[epoch * num_prompts : (epoch + 1) * num_prompts]
        assert sorted(one_pass) == list(range(num_prompts))


@given(sizes, sizes, st.integers(1, 30), st.integers(0, 3))
def test_a_round_has_the_rows_asked_for_and_is_pure(num_prompts: int, count: int, iteration: int, round_: int) -> None:
    rows = prompts_of(num_prompts, 7, iteration, round_, count)
    assert len(rows) == count
    assert ((rows >= 0) & (rows < num_prompts)).all()
    np.testing.assert_array_equal(rows, prompts_of(num_prompts, 7, iteration, round_, count))


@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 20))
def test_later_rounds_repeat_nothing_where_the_table_is_large_enough(count: int, iteration: int, spare: int) -> None:
    rounds = [prompts_of(4 * count + spare, 3, iteration, round_, count) for round_ in range(4)]
    later = np.concatenate(rounds[1:])
    assert len(set(later.tolist())) == 3 * count
    assert not set(rounds[0].tolist()) & set(later.tolist())


def test_a_small_table_gives_what_is_left_first() -> None:
    first, second = (prompts_of(10, 0, 1, round_, 6).tolist() for round_ in (0, 1))
    assert set(second[:4]) == set(range(10)) - set(first)
    assert len(second) == 6


def test_epochs_rounds_and_seeds_are_shuffled_differently() -> None:
    orders = [tuple(prompts_of(50, *key, 50)) for key in [(0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)]]
    assert len(set(orders)) == 4
    assert tuple(range(50)) not in orders


def test_a_late_iteration_shuffles_only_its_own_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    default_rng = np.random.default_rng

    def make(seed: list[int]) -> np.random.Generator:
        made.append(seed)
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", make)
    prompts_of(100, 5, 1001, 0, 30)  # positions 30000 … 30029
    prompts_of(100, 5, 4, 0, 30)  # positions 90 … 119
    assert made == [[5, 0, 300], [5, 0, 0], [5, 0, 1]]


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        prompts_of(0, 0, 1, 0, 4)


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    factors = [learning_rate_factor(update, 100, 0.05, "cosine") for update in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_and_linear_fall_to_zero_and_stay_there() -> None:
    updates = (0, 25, 50, 75, 100, 1000)
    cosine = [learning_rate_factor(update, 100, 0.0, "cosine") for update in updates]
    linear = [learning_rate_factor(update, 100, 0.0, "linear") for update in updates]
    assert cosine == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0])
    assert linear == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])


def test_constant_stays_at_one() -> None:
    assert [learning_rate_factor(update, 10, 0.2, "constant") for update in (0, 1, 9, 99)] == [0.5, 1, 1, 1]


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]), st.integers(0, 400))
def test_factors_are_between_zero_and_one_and_planned_updates_train(
    total: int, warmup: float, schedule: Schedule, update: int
) -> None:
    factor = learning_rate_factor(update, total, warmup, schedule)
    assert 0 <= factor <= 1
    if update < total:
        assert factor > 0


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        learning_rate_factor(0, 10, 0.0, "step")  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 8), max_size=30), st.integers(1, 8), st.integers(0, 9), st.integers(1, 9))
def test_mini_batches_share_the_groups_evenly(
    group_sizes: list[int], num_batches: int, seed: int, iteration: int
) -> None:
    batches = mini_batches(group_sizes, num_batches, seed, iteration)
    present = [i for i, size in enumerate(group_sizes) if size > 0]
    assert sorted(i for batch in batches for i in batch) == present
    assert len(batches) == min(num_batches, len(present))
    lengths = [len(batch) for batch in batches]
    assert not lengths or 1 <= min(lengths) <= max(lengths) <= min(lengths) + 1
    assert batches == mini_batches(group_sizes, num_batches, seed, iteration)


def test_mini_batches_are_shuffled_anew_each_iteration() -> None:
    one, two = mini_batches([8] * 32, 4, 0, 1), mini_batches([8] * 32, 4, 0, 2)
    assert one != two
    assert one[0] != list(range(8))


def test_a_pass_takes_all_mini_batches_in_an_order_of_its_own() -> None:
    orders = [order_of_pass(16, 7, iteration, pass_) for iteration in (1, 2) for pass_ in range(3)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] == orders[3] == list(range(16))  # the first takes them as they are
    assert len({tuple(order) for order in orders}) == 5
