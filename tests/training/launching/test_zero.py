"""A rank's part of a weight under DeepSpeed ZeRO, without a launch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dapo_stages.training.launching.zero import Zero


@pytest.mark.parametrize(("rank", "held"), [(0, [0.0, 1.0, 2.0]), (1, [3.0, 4.0]), (2, [])])
def test_padding_of_a_part_is_no_weight(rank: int, held: list[float]) -> None:
    """DeepSpeed splits 5 numbers into 3 + 3 + 3, and does not initialize the last ones."""
    worker: Any = object.__new__(Zero)
    worker.rank = rank
    flat = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, *[math.nan] * 4])
    part: Any = flat[3 * rank : 3 * rank + 3]
    part.ds_numel = 3
    parameter = SimpleNamespace(ds_tensor=part, ds_numel=5)
    assert worker._held(parameter).tolist() == held


def test_a_weight_that_is_not_split_is_whole() -> None:
    worker: Any = object.__new__(Zero)
    assert worker._held(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
