"""Memory by parts, compared with DeepSpeed's own estimate and with what autograd really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dapo_stages.planning import layer_memory
from dapo_stages.planning.dimensions import Dimensions, dimensions_of
from dapo_stages.planning.layer_memory import Work
from dapo_stages.planning.published_models import PUBLISHED
from dapo_stages.planning.stage_memory import Parallel, Passes, Training, rollout, score, train, vllm, weights_of

D7 = dimensions_of(PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"])
WORK = Work(prompt=1024, completion=384, count=8, patches=3840)
FULL = Training(160, 4, True, 1024, D7.parameters, 0, "zero2", 4, True, 0)


def test_zero_2_states_are_what_deepspeed_estimates() -> None:
    """2 bytes of each weight and 18 over the ranks: estimate_zero2_model_states_mem_needs(8292166656, 4, 1, False)."""
    held = train(D7, WORK, FULL, 1, 2).device
    states = held["weights"] + held["gradients"] + held["float32 weights and moments"]
    assert states == pytest.approx(2 * 8_292_166_656 + 18 * 8_292_166_656 / 4, rel=1e-6)


def test_a_bucket_has_a_copy_in_what_it_is_added_up_in() -> None:
    """5·10⁸ values: two buckets of 2 bytes, and 4 more for sums in float32."""
    assert train(D7, WORK, FULL, 1, 2).device["buckets"] == 4_000_000_000
    assert train(D7, WORK, replace(FULL, sums=2), 1, 2).device["buckets"] == 2_000_000_000
    assert train(D7, WORK, FULL, 1, 4).device["buckets"] == 4_000_000_000


def test_fsdp2_splits_everything_and_starts_with_the_policy_as_it_was_loaded() -> None:
    """16 bytes of each weight over the ranks; two layers of 233 M weights, and embedding and head of 545 M each. With
    64 ranks the weights as loaded, and the float32 copy of embedding and head, are the most."""
    held = train(D7, WORK, replace(FULL, parallel="fsdp2"), 1, 2).device
    assert held["weights"] + held["gradients"] + held["moments"] == 16 * 8_292_166_656 // 4
    layer = 2 * 3584**2 + 3584 + 2 * (3584 * 512 + 512) + 3 * 3584 * 18944 + 2 * 3584
    outside = 2 * 152_064 * 3584 + 3584
    assert held["gathered weights"] == 2 * (2 * layer + outside)
    assert held["gradients that are sent"] == (2 + 4) * outside
    start = train(D7, replace(WORK, count=1), replace(FULL, parallel="fsdp2", ranks=64, logprob_chunk=1), 1, 2).device
    assert start["weights as loaded"] == 2 * 8_292_166_656 and start["exact weights of a part"] == 4 * outside


def test_one_process_holds_float32_weights_gradients_and_moments() -> None:
    held = train(D7, WORK, replace(FULL, parallel="single", ranks=1), 1, 2).device
    assert held["weights"] + held["gradients"] + held["moments"] == 16 * 8_292_166_656


def test_views_of_a_perception_term_are_further_groups_where_they_are_computed_again() -> None:
    """By hand: 24 completions of three groups in place of 8 of one, and three times as many prepared prompts."""
    plain, fixed = train(D7, WORK, FULL, 1, 2), train(D7, WORK, replace(FULL, views=2), 1, 2)
    again = train(D7, WORK, replace(FULL, views=2, recompute=True), 1, 2)
    three = train(D7, replace(WORK, count=24), FULL, 3, 2)
    assert fixed.device == plain.device and again.device == three.device
    assert again.total > plain.total
    assert fixed.host == again.host == {**plain.host, "prepared prompts": 3 * plain.host["prepared prompts"]}


def test_more_ranks_and_more_splitting_need_less() -> None:
    splits: tuple[tuple[Parallel, int], ...] = (
        ("ddp", 4),
        ("zero1", 4),
        ("zero2", 4),
        ("zero2", 8),
        ("zero3", 8),
        ("zero3-offload", 8),
    )
    totals = [train(D7, WORK, replace(FULL, parallel=parallel, ranks=ranks), 1, 2).total for parallel, ranks in splits]
    assert totals == sorted(totals, reverse=True)


def test_a_cache_has_two_vectors_per_layer_and_token() -> None:
    """7B: 28 layers, 4 heads of 128 for keys and values: 57 344 bytes a token in bfloat16."""
    held = rollout(D7, WORK, 8, 2, 0).device
    assert held["cache of the completions"] == 64 * 384 * 57_344
    assert held["cache of the prompts"] == 8 * 1024 * 57_344
    tokens = (144 * 2**30 - 2 * 8_292_166_656) // 57_344
    assert vllm(D7, 2 * 8_292_166_656, 2, 72 * 2**30, 2, 1) == tokens
    assert vllm(D7, 2 * 8_292_166_656, 2, 72 * 2**30, 2, 1408) == tokens // 1408


def test_fewer_rows_at_a_time_need_less_in_scoring() -> None:
    long = Work(prompt=4096, completion=1024, count=8, patches=0)
    assert score(D7, long, 1, 64, 2, 0).total <= score(D7, long, 1, 4096, 2, 0).total


def test_more_passes_need_logits_and_a_derivative_beside_each_value() -> None:
    """7B: 9 and 5 tensors of 256 · 152 064 float32; 4 directions of 4096 · 3584 float32 for one group."""
    for passes, tensors in ((Passes(logprobs=True), 5), (Passes(blanks=1), 9)):
        assert score(D7, WORK, 1, 256, 2, 0, passes).device["logits"] == tensors * 256 * 152_064 * 4
    held = score(D7, WORK, 1, 256, 2, 0, Passes(directions=4)).device
    assert held["directions"] == 4 * 4096 * 3584 * 4
    # 28 heads, 5 tensors in bfloat16 of 3072 rows by 1408 keys, and of the prompt's 1024 by 1024
    assert held["derivatives of attention"] == 5 * 28 * (3072 * 1408 + 1024**2) * 2
    assert score(D7, WORK, 1, 256, 2, 0, Passes(rollout=True)).total >= score(D7, WORK, 1, 256, 2, 0).total


@pytest.mark.long
@pytest.mark.parametrize("b", [4, 2])
def test_activations_are_what_autograd_keeps_for_a_layer(b: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another layer adds to the tensors saved for the backward pass of a group."""
    from benchmarks import models
    from support.counted import saved

    from dapo_stages.models.shared_prefix.packing import Group

    def bytes_of(layers: int, vision_layers: int) -> tuple[int, Dimensions]:
        monkeypatch.setitem(models._TEXT, "num_hidden_layers", layers)
        monkeypatch.setitem(models._VISION, "depth", vision_layers)
        monkeypatch.setitem(models._VISION, "fullatt_block_indexes", [0])
        policy = models.medium()
        group = Group(models.prompt(policy, 303, (14, 16), 1), models.completions(8, 64, 2))
        return saved(policy, b, group), dimensions_of(policy.model.config.to_dict())

    base, d = bytes_of(1, 1)
    work = Work(prompt=303, completion=64, count=8, patches=896)
    assert bytes_of(2, 1)[0] - base == pytest.approx(layer_memory.saved_text(d, work, 1, b), rel=0.03)
    assert bytes_of(1, 2)[0] - base == pytest.approx(layer_memory.saved_vision(d, 896, b), rel=0.03)


def test_quantization_applies_to_the_texts_linear_layers() -> None:
    """7B: 6.53 G weights, without the vision tower, embedding and head. nf4: 4.127 bits (QLoRA, section 3)."""
    linear = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    rest = 2 * (8_292_166_656 - linear)
    assert weights_of(D7, 2, "nf4") == pytest.approx(linear * 4.127 / 8 + rest, rel=1e-4)
    assert weights_of(D7, 2, "int8") == linear + rest
    assert weights_of(D7, 2) == 2 * 8_292_166_656
