"""batch_completions: auto, worked by hand for Qwen2.5-VL-7B in bfloat16 under ZeRO-2 on 4 GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.config import Config
from dapo_stages.planning.micro_batches import completions_at_once
from dapo_stages.planning.published_models import PUBLISHED
from dapo_stages.planning.run_plan import GIB
from dapo_stages.processes.memory import Gpu

SEVEN = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]
# 16 prompts × 8 completions an update, as in the reference: 4 groups on each of 4 ranks.
SETTINGS: dict[str, Any] = {
    "data": {"max_prompt_length": 1024, "max_image_size": 1024},
    "rollout": {"prompts_per_iteration": 160, "num_generations": 8, "max_completion_length": 384},
    "train": {"updates_per_iteration": 10, "batch_completions": "auto"},
}


def chosen(gibibytes: float, parallel: str = "zero2", ranks: int = 4, groups: int = 4, others: int = 0) -> int:
    return completions_at_once(
        Config.model_validate(SETTINGS), SEVEN, parallel, ranks, groups, device(gibibytes, others)
    )


def device(gibibytes: float, others: int = 0) -> Gpu:
    total = int(gibibytes * GIB)
    return Gpu(peak=0, allocated=0, free=total - others, total=total)


@pytest.mark.parametrize(
    ("usable", "groups", "completions"),
    [
        # States 15.45 + 34.75 GiB, buckets 3.73, process 1.5: 55.4. A group of 4096 tokens and 3840 patches keeps 0.77
        # + 0.29 of residual streams; a layer again 1.0, its gradients .51, embeddings and images .1: 2.7. With one
        # group the logits, 2.9 + 1.1, are more; they are of 1024 tokens, so of half a group, too, but not of a quarter.
        (59.0, 4, 2),
        (60.0, 4, 8),
        (61.5, 4, 16),  # 60.8
        (65.5, 4, 16),  # three groups would fit, but leave one: as many parts as two and two
        (66.5, 4, 32),  # 66.1
        (61.5, 5, 16),  # 2 + 2 + 1
        (64.0, 5, 24),  # 3 + 2 rather than 4 + 1
        (68.5, 5, 24),
        (69.5, 5, 40),  # 68.8
    ],
)
def test_as_few_parts_as_fit_where_gradients_are_sent_each_time(usable: float, groups: int, completions: int) -> None:
    assert chosen(usable / 0.9, groups=groups) == completions


def test_a_group_is_the_most_where_gradients_are_sent_once() -> None:
    assert [chosen(1000, parallel) for parallel in ("ddp", "zero1")] == [8, 8]
    assert chosen(1000, "single", ranks=1) == 8


def test_a_group_that_does_not_fit_is_halved() -> None:
    assert chosen(10) == 1


def test_what_others_hold_is_not_there() -> None:
    """1.5 GiB of it is the context of this process, which plan counts anyway."""
    assert chosen(80, others=int(1.5 * GIB)) == 32
    assert chosen(80, others=12 * GIB) < 32


def test_without_a_gpu_or_for_a_model_that_is_not_known_it_is_a_group() -> None:
    config = Config.model_validate(SETTINGS)
    assert completions_at_once(config, SEVEN, "zero2", 4, 4, None) == 8
    assert completions_at_once(config, {"model_type": "llava"}, "zero2", 4, 4, device(80)) == 8


def test_a_number_stays() -> None:
    config = Config.model_validate(SETTINGS | {"train": {"batch_completions": 3}})
    assert completions_at_once(config, SEVEN, "zero2", 4, 4, device(80)) == 3


def test_bnpo_averages_over_micro_batches_so_it_needs_a_number() -> None:
    with pytest.raises(ValueError, match="batch_completions must be a number with loss_type bnpo"):
        Config.model_validate({"train": {"batch_completions": "auto", "loss_type": "bnpo"}})
