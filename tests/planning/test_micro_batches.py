"""batch_completions: auto, worked by hand for Qwen2.5-VL-7B in bfloat16 under ZeRO-2 on 4 GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.config import Config
from dapo_stages.planning.dimensions import PUBLISHED
from dapo_stages.planning.micro_batches import completions_at_once
from dapo_stages.planning.run_plan import GIB

SEVEN = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]
# 16 prompts × 8 completions an update, as in the reference: 4 groups on each of 4 ranks.
SETTINGS: dict[str, Any] = {
    "data": {"max_prompt_length": 1024, "max_image_size": 1024},
    "rollout": {"prompts_per_iteration": 160, "num_generations": 8, "max_completion_length": 384},
    "train": {"updates_per_iteration": 10, "batch_completions": "auto"},
}


def chosen(gibibytes: float, parallel: str = "zero2", ranks: int = 4, groups: int = 4, others: int = 0) -> int:
    gpu = int(gibibytes * GIB), others
    return completions_at_once(Config.model_validate(SETTINGS), SEVEN, parallel, ranks, groups, gpu)


def test_all_groups_of_an_update_go_at_once_where_gradients_are_sent_each_time() -> None:
    """States 15.45 + 34.75 GiB, buckets 3.73, process 1.5: 55.4. Four groups of 4096 tokens keep 28 · 3584 · 2 bytes
    each, 3.06 GiB, and at most a layer on top: they fit into 72 GiB."""
    assert chosen(80) == 32


def test_the_fewest_parts_that_fit_are_taken() -> None:
    """From 55.4 + 0.8 (a group's residual streams) on: room for one group, then for two, in parts of equal size."""
    sizes = [chosen(gib / 0.9) for gib in (62, 64, 66, 68, 70)]
    assert sizes == sorted(sizes) and set(sizes) <= {8, 16, 32} and len(set(sizes)) > 1


def test_a_group_is_the_most_where_gradients_are_sent_once() -> None:
    assert [chosen(1000, parallel) for parallel in ("ddp", "zero1")] == [8, 8]
    assert chosen(1000, "single", ranks=1) == 8


def test_parts_are_of_equal_size() -> None:
    """Of 5 groups 3 + 2 rather than 4 + 1."""
    sizes = {chosen(gib / 0.9, groups=5) // 8 for gib in range(58, 76)}
    assert sizes <= {1, 2, 3, 5}


def test_a_group_that_does_not_fit_is_halved() -> None:
    assert chosen(10) == 1


def test_what_others_hold_is_not_there() -> None:
    """1.5 GiB of it is the context of this process, which plan counts anyway."""
    assert chosen(80, others=int(1.5 * GIB)) == 32
    assert chosen(80, others=12 * GIB) < 32
    assert chosen(80 + 1000, others=1000 * GIB) == chosen(80) == 32  # noqa: the first has more headroom


def test_without_a_gpu_or_for_a_model_that_is_not_known_it_is_a_group() -> None:
    config = Config.model_validate(SETTINGS)
    assert completions_at_once(config, SEVEN, "zero2", 4, 4, None) == 8
    assert completions_at_once(config, {"model_type": "llava"}, "zero2", 4, 4, (80 * GIB, 0)) == 8


def test_a_number_stays() -> None:
    config = Config.model_validate(SETTINGS | {"train": {"batch_completions": 3}})
    assert completions_at_once(config, SEVEN, "zero2", 4, 4, (80 * GIB, 0)) == 3


def test_bnpo_averages_over_micro_batches_so_it_needs_a_number() -> None:
    with pytest.raises(ValueError, match="batch_completions must be a number with loss_type bnpo"):
        Config.model_validate({"train": {"batch_completions": "auto", "loss_type": "bnpo"}})
