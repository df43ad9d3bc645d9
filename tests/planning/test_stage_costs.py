"""Operations compared with torch's own count, and the other numbers that times are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.limits import Load, training

from dapo_stages.planning import stage_costs
from dapo_stages.planning.dimensions import Dimensions, dimensions_of
from dapo_stages.planning.layer_memory import Work
from dapo_stages.planning.published_models import PUBLISHED
from dapo_stages.planning.stage_memory import Passes
from dapo_stages.planning.tower import Tower

D7 = dimensions_of(PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"])
SMALL = Dimensions(
    vocabulary=10,
    hidden=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head=2,
    mlp=16,
    tied=True,
    tower=Tower(layers=3, hidden=4, mlp=6, full_layers=1, window=4, patch=5, merge=4, side=2, out=8, gated=True),
)


def test_pairs_of_queries_and_keys_are_those_of_the_causal_mask() -> None:
    # Prompt of 3; the queries of completions of 2 and 1 see 4 + 5 and 4 keys.
    assert stage_costs.completion_pairs(Load(3, (2, 1), ())) == 13


def test_operations_of_text_are_those_counted_by_hand() -> None:
    # A layer: q and o 8 × 8, k and v 8 × 4, three of 8 × 16: 576 weights. 6 tokens; 6 pairs in the prompt, 13 after.
    layers = 2 * (2 * 6 * 576 + 4 * 8 * (6 + 13))
    assert stage_costs.forward(SMALL, Load(3, (2, 1), ()), logits=False) == layers
    assert stage_costs.forward(SMALL, Load(3, (2, 1), ()), logits=True) == layers + 2 * 3 * 8 * 10


def test_operations_of_an_image_are_those_counted_by_hand() -> None:
    # 8 patches: embedding 8 × 5 × 4; a layer 4 · 16 + 3 · 24 = 136 weights; 64 pairs in the full layer, 32 in the two
    # others; 2 merged tokens through 16 × 16 and 16 × 8.
    image = 2 * 8 * 5 * 4 + 3 * 2 * 8 * 136 + 4 * 4 * (64 + 2 * 32) + 2 * 2 * (16 * 16 + 16 * 8)
    text = stage_costs.forward(SMALL, Load(3, (1,), ()), logits=False)
    assert stage_costs.forward(SMALL, Load(3, (1,), (8,)), logits=False) == text + image


def test_training_is_three_forwards() -> None:
    load = Load(3, (2, 1), (8,))
    assert training(SMALL, load) == 3 * stage_costs.forward(SMALL, load, logits=True)


def test_scoring_scores_completions_once_more_and_ends_at_the_keys_of_the_last_layer() -> None:
    # Once more: 2 layers, 8 wide, 13 pairs. Unneeded in the last layer: v 8 × 4, o 8 × 8, three of 8 × 16, 19 pairs.
    load = Load(3, (2, 1), (8,))
    again, unneeded = 2 * 2 * 8 * 13, 2 * 6 * (32 + 64 + 384) + 4 * 8 * 19
    assert stage_costs.scoring(SMALL, load) == stage_costs.forward(SMALL, load, logits=False) + again - unneeded


def test_logprobs_take_the_whole_last_layer_and_the_head_and_a_blank_image_all_of_it_again() -> None:
    load, again = Load(3, (2, 1), (8,)), 2 * 2 * 8 * 13
    whole = stage_costs.forward(SMALL, load, logits=True)
    assert stage_costs.scoring(SMALL, load, Passes(logprobs=True)) == whole + again
    assert stage_costs.scoring(SMALL, load, Passes(blanks=1)) == 2 * whole + again
    assert stage_costs.scoring(SMALL, load, Passes(blanks=3)) == 4 * whole + again


def test_rollout_scores_the_prompt_once_more_and_a_direction_takes_more_than_twice_a_pass() -> None:
    # 6 pairs of the prompt, 13 of the completions. Without images a direction is twice a pass, and its 4 · 8 operations
    # for each of 2 · 19 pairs once more.
    load, again = Load(3, (2, 1), ()), 2 * 2 * 8 * 13
    masses = stage_costs.scoring(SMALL, load)
    assert stage_costs.scoring(SMALL, load, Passes(rollout=True)) == masses + 2 * 2 * 8 * 6
    whole = stage_costs.forward(SMALL, load, logits=True)
    one = 2 * whole + 4 * 8 * 2 * 19
    assert stage_costs.scoring(SMALL, load, Passes(directions=4)) == whole + again + 4 * one
    with_image = Load(3, (2, 1), (8,))
    image = stage_costs.forward(SMALL, with_image, logits=True) - whole
    assert stage_costs.scoring(SMALL, with_image, Passes(directions=1)) == whole + image + again + one + image


def test_separate_rows_compute_the_prompt_as_often_as_there_are_completions() -> None:
    load = Load(100, (4, 4, 4, 4), (8,))
    separate = sum(stage_costs.forward(SMALL, one, logits=False) for one in load.separate())
    assert 3 < separate / stage_costs.forward(SMALL, load, logits=False) < 4


@pytest.mark.long
def test_operations_of_a_forward_pass_are_those_that_torch_counts() -> None:
    """torch counts full squares of attention, of which half is masked: a few percent more here."""
    import torch
    from benchmarks import models
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from dapo_stages.models.logprobs import GroupLogprobs
    from dapo_stages.models.shared_prefix.packing import Group

    policy = models.medium()
    policy.attend("grouped")
    batch = policy.batch([Group(models.prompt(policy, 303, (16, 16), 1), models.completions(8, 64, 2))])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GroupLogprobs(policy, 1.0)(batch)
    d = dimensions_of(policy.model.config.to_dict())
    assert stage_costs.forward(d, Work(303, 64, 8, 1024), logits=True) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_a_decoding_step_reads_the_weights_once() -> None:
    """One row of 7B at 1 TB/s: 7.6 G weights of the text in bfloat16 take 15 ms."""
    rates = stage_costs.Rates(operations=1e15, memory=1e12, disk=1, link=1)
    one = stage_costs.decoding(D7, Work(1, 1, 1, 0), 1, 2, rates, called=False)
    assert one == pytest.approx(2 * (8_292_166_656 - 676_550_144) / 1e12, rel=0.01)


def test_a_decoding_step_calls_torch_layer_by_layer() -> None:
    """On a device without limits only the calls remain: 28 · 80 + 70 for 7B's 28 layers, here of 10 µs."""
    rates = stage_costs.Rates(operations=1e30, memory=1e30, disk=1, link=1, call=10e-6)
    assert stage_costs.decoding(D7, Work(1, 5, 1, 0), 1, 2, rates, called=True) == pytest.approx(5 * 2310 * 10e-6)


def test_calls_of_a_decoding_step_are_those_that_torch_sees(checkpoint: Path) -> None:
    from support.counted import calls_of_a_step
    from support.prompts import groups

    from dapo_stages.config import ModelConfig
    from dapo_stages.models.policy_loading import load_policy

    policy = load_policy(checkpoint, ModelConfig(dtype="float32", device="cpu"))
    found = calls_of_a_step(policy, [group.prompt for group in groups(policy)])
    assert found == pytest.approx(stage_costs.LAYER_CALLS * len(policy.scored_layers) + stage_costs.STEP_CALLS, rel=0.1)


def test_an_update_is_three_or_four_forward_passes_and_the_old_logprobs() -> None:
    work = Work(1024, 384, 8, 3840)
    once = stage_costs.forward(D7, work, logits=True)
    assert stage_costs.update(D7, work, checkpointing=False, updates=1) == 3 * once
    assert stage_costs.update(D7, work, checkpointing=True, updates=4) == pytest.approx(4.75 * once)
    assert stage_costs.update(D7, work, checkpointing=True, updates=4, passes=3) == pytest.approx(12.75 * once)


def test_a_view_of_a_perception_term_is_a_forward_pass_or_another_group() -> None:
    work = Work(1024, 384, 8, 3840)
    once = stage_costs.forward(D7, work, logits=True)
    assert stage_costs.update(D7, work, checkpointing=False, updates=1, views=2) == 5 * once
    assert stage_costs.update(D7, work, checkpointing=True, updates=1, views=2, recompute=True) == 12 * once


@pytest.mark.parametrize(
    ("parallel", "gigabytes"),
    [
        # 7B on 4 ranks, 4 micro-batches, n = 8.29 G: three quarters of …
        ("ddp", 0.75 * 2 * 4 * 8.292),  # gradients, all-reduced once
        ("zero1", 0.75 * (2 * 4 + 2) * 8.292),  # the same, and new weights in bfloat16
        ("zero2", 0.75 * (4 * 2 * 4 + 2) * 8.292),  # gradients four times: 211 GB
        ("zero3", 0.75 * (4 * 4 + 2 * (2 * 4 + 3)) * 8.292),  # scattered four times, weights for 11 passes
        ("fsdp2", 0.75 * (4 * 4 + 2 * (2 * 4 + 3)) * 8.292),
    ],
)
def test_ranks_send_gradients_in_float32(parallel: str, gigabytes: float) -> None:
    n = D7.parameters
    assert stage_costs.traffic(parallel, n, n, 4, 3, 4, 2) / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_sums_in_bfloat16_send_half_as_much() -> None:
    """8.29 G gradients, of 2 bytes instead of 4: once under DDP, for each of two micro-batches under ZeRO-2."""
    n = D7.parameters
    assert stage_costs.traffic("ddp", n, n, 2, 3, 4, 2, sums=2) / 1e9 == pytest.approx(0.75 * 2 * 2 * 8.292, rel=1e-3)
    zero2 = stage_costs.traffic("zero2", n, n, 2, 3, 4, 2, sums=2) / 1e9
    assert zero2 == pytest.approx(0.75 * (2 * 2 * 2 + 2) * 8.292, rel=1e-3)


def test_an_adapter_sends_its_own_gradients() -> None:
    """Four micro-batches of 10 M weights under ZeRO-2 on two ranks: half of 4 · 8 + 2 bytes each."""
    assert stage_costs.traffic("zero2", 10_000_000, D7.parameters, 4, 3, 2, 2) == 170_000_000


def test_a_state_is_put_together_on_all_ranks() -> None:
    """Half of its bytes from each of two ranks by gathering, twice that by all-reduce; with DDP every rank has it."""
    assert [stage_costs.state_traffic(kind, 100, 2) for kind in ("ddp", "zero2", "zero3", "fsdp2")] == [0, 100, 50, 50]


@pytest.mark.parametrize(
    ("target", "ranks", "share", "oversample", "most", "shards"),
    [
        (160, 1, 1.0, 1.0, 5, (5, 5)),
        # Half of 32: 5 shards leave 80 missing, 3 leave 32, 1 leaves 16, 1 none.
        (160, 1, 0.5, 1.0, 20, (10, 10)),
        # Four ranks take 8, 4 more when a tenth is needed.
        (160, 4, 0.5, 1.0, 20, (12, 10)),
        # 1.5 times 160 groups are 8 shards and leave 32 missing, of which 1.5 times are 2.
        (160, 1, 0.5, 1.5, 32, (10, 10)),
        (160, 1, 0.1, 1.0, 20, (20, 20)),  # the rounds end before there are enough
    ],
)
def test_shards_are_asked_for_until_enough_groups_are_informative(
    target: int, ranks: int, share: float, oversample: float, most: int, shards: tuple[int, int]
) -> None:
    assert stage_costs.asked_for(target, 32, ranks, share, oversample, most) == shards


def test_files_are_read_at_the_slower_of_two_rates() -> None:
    """10 GB take 7 s with SHA-256, and 4.2 s as tensors from the page cache; a disk of 2 GB/s reads them in 5 s."""
    fast = stage_costs.Rates(1, 1, disk=9e9, link=1)
    assert fast.verifying(10e9) == pytest.approx(10 / 1.43) and fast.loading(10e9) == pytest.approx(10 / 2.4)
    rates = stage_costs.Rates(1, 1, disk=2e9, link=1)
    assert rates.verifying(10e9) == pytest.approx(10 / 1.43) and rates.loading(10e9) == 5
    slow = stage_costs.Rates(1, 1, disk=1e9, link=1)
    assert slow.verifying(10e9) == slow.loading(10e9) == 10


def test_files_of_an_iteration_are_sized_as_real_ones_are(small_run: Any) -> None:
    """The attention of a real iteration, including that on patches of images, within a third."""
    from support.pipeline import table

    folder = small_run.at(1) / "attention"
    scored = table(folder, "attention")
    scored = scored[scored.status == "ok"]
    tokens, vision = int(scored.vgr.map(len).sum()), int(scored.num_vision_tokens.iloc[0])
    real = sum(path.stat().st_size for path in folder.glob("attention-*.parquet"))
    work = Work(prompt=65, completion=tokens // len(scored), count=len(scored), patches=4 * vision)
    shards = len(list(folder.glob("attention-*.parquet")))
    found = stage_costs.shards(D7, work, 1, 0, 0)["score-attention"]
    assert found < real  # footers and names of columns come on top: some 20 kB a shard
    assert real - found < 40_000 * shards
