"""Shares of datasets: by hand for the counts, by counting for what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from dapo_stages.maths.schedule import prompts_of
from dapo_stages.maths.source_shares import counts_of, prompts_by_share


@pytest.mark.parametrize(
    ("shares", "count", "counts"),
    [
        ({"a": 1, "b": 3}, 8, {"a": 2, "b": 6}),
        ({"a": 0.25, "b": 0.75}, 8, {"a": 2, "b": 6}),
        ({"a": 1, "b": 1, "c": 1}, 8, {"a": 3, "b": 3, "c": 2}),  # 2.67 each: two more, in order
        ({"a": 1, "b": 2}, 4, {"a": 1, "b": 3}),  # 1.33 and 2.67
        ({"a": 1}, 5, {"a": 5}),
        ({"a": 1e-9, "b": 1}, 4, {"a": 0, "b": 4}),
    ],
)
def test_counts_add_up(shares: dict[str, float], count: int, counts: dict[str, int]) -> None:
    assert counts_of(shares, count) == counts


ROWS = {"a": np.arange(0, 6), "b": np.arange(6, 30)}


def test_each_dataset_is_covered_evenly() -> None:
    """24 of b are read 6 at a time: four iterations are a pass. 6 of a, 2 at a time: three are."""
    drawn = [prompts_by_share(ROWS, {"a": 1, "b": 3}, 42, iteration, 0, 8) for iteration in range(1, 13)]
    assert all((rows < 6).sum() == 2 and (rows >= 6).sum() == 6 for rows in drawn)
    assert np.array_equal(np.bincount(np.concatenate(drawn)), [4] * 6 + [3] * 24)


def test_rounds_do_not_repeat_rows_while_there_are_others() -> None:
    rounds = [prompts_by_share(ROWS, {"a": 1, "b": 3}, 42, 1, round_, 8) for round_ in range(3)]
    assert len(set(np.concatenate(rounds).tolist())) == 24


def test_a_single_dataset_is_drawn_as_without_shares() -> None:
    drawn = prompts_by_share({"b": ROWS["b"]}, {"b": 1}, 42, 2, 0, 8)
    assert sorted(drawn) == sorted(ROWS["b"][prompts_of(24, 42, 2, 0, 8)])
