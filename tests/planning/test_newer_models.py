"""plan's formulas for Qwen3-VL and Qwen3.5: by hand at published sizes, and against what torch does in small models."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest

from dapo_stages.planning import layer_memory, stage_costs
from dapo_stages.planning.dimensions import Dimensions, dimensions_of
from dapo_stages.planning.layer_memory import Work, keys_of, states_of
from dapo_stages.planning.published_models import PUBLISHED
from dapo_stages.planning.stage_memory import Training, rollout, train, vllm

D4 = dimensions_of(PUBLISHED["Qwen/Qwen3-VL-4B-Instruct"])
D9 = dimensions_of(PUBLISHED["Qwen/Qwen3.5-9B"])
WORK = Work(prompt=303, completion=64, count=8, patches=896)


def test_keys_have_a_width_of_their_own() -> None:
    """4B: 36 layers with 8 heads of 128, beside a hidden size of 2560 in 32 heads: 147,456 bytes in bfloat16."""
    assert keys_of(D4, 1, 2) == 2 * 36 * 8 * 128 * 2 == 147_456
    assert states_of(D4, 1, 2) == 0


def test_a_row_has_a_state_in_linear_layers_whatever_its_length() -> None:
    """9B: 8 of 32 layers have keys, 4 heads of 256. The others have 32 states of 128 × 128 in float32, and four inputs
    of the convolution: 2 · 2048 of queries and keys, 4096 of values."""
    row = 24 * (32 * 128 * 128 * 4 + 4 * 8192 * 2)
    assert keys_of(D9, 1, 2) == 2 * 8 * 4 * 256 * 2
    assert states_of(D9, 3, 2) == 3 * row
    held = rollout(D9, WORK, 2, 2, 0).device
    assert held["cache of the completions"] == 16 * (64 * 32_768 + row)
    assert held["cache of the prompts"] == 2 * (303 * 32_768 + row)
    assert vllm(D9, 0, 2, 10 * (1000 * 32_768 + row), 1, 1000) == 10


def test_a_delta_rule_takes_six_operations_for_each_value_of_a_state() -> None:
    """9B: 24 layers of 2^19 values; the matrices' part is counted as in other models."""
    without = 2 * 815 * D9.matrices + 4 * 8 * 16 * 256 * (303 * 304 // 2 + 8 * (64 * 303 + 64 * 65 // 2))
    found = stage_costs.forward(D9, Work(303, 64, 8, 0), logits=False)
    assert found == without + 6 * 24 * 2**19 * 815


def test_fsdp2_gathers_the_larger_kind_of_layer() -> None:
    """9B: 67.1 M weights in a linear layer's projections, 58.7 M in those with attention, beside 151 M of the MLP."""
    linear = 4096 * (8192 + 2 * 4096 + 2 * 32) + 8192 * 4 + 2 * 32 + 128 + 3 * 4096 * 12288 + 2 * 4096
    full = Training(160, 4, True, 1024, D9.parameters, 0, "fsdp2", 4, True, 0)
    held = train(D9, WORK, full, 1, 2).device
    assert linear > D9.layer
    assert held["gathered weights"] == 2 * (2 * linear + 2 * 248_320 * 4096 + 4096)


LINEAR, FULL = "linear_attention", "full_attention"


@functools.cache
def made(family: str, layers: tuple[str, ...], vision_layers: int = 1) -> Any:
    """A policy with random weights, whose heads are wider than its hidden size."""
    import torch
    from support.families import _qwen, _text

    from dapo_stages.models.policy import Policy

    vision = {
        "depth": vision_layers, "hidden_size": 192, "intermediate_size": 384, "num_heads": 4, "out_hidden_size": 384,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [16, 8, 8], "rope_theta": 10000.0}
    more: dict[str, Any] = {}
    if family == "Qwen3VL":
        vision["deepstack_visual_indexes"] = [0]  # type: ignore[assignment]
    else:
        more = {"layer_types": list(layers), "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        rope |= {"mrope_section": [4, 2, 2], "partial_rotary_factor": 0.25}
    text = _text(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=len(layers), num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, rope_parameters=rope, **more,
    )  # fmt: skip
    model, processor = _qwen(family, text, vision, patch=16)
    return Policy(model.eval(), processor, torch.device("cpu"), torch.float32)


def group(policy: Any) -> Any:
    """WORK, with an image of 14 × 16 vision tokens."""
    import torch
    from benchmarks import models

    from dapo_stages.models.shared_prefix.packing import Group

    pixels = torch.randn(WORK.patches, 3 * 2 * 16 * 16)
    prompt = replace(models.prompt(policy, WORK.prompt, (14, 16), 1), pixel_values=pixels)
    return Group(prompt, models.completions(WORK.count, WORK.completion, 2))


def sizes(policy: Any) -> Dimensions:
    return dimensions_of(policy.model.config.to_dict())


@pytest.mark.long
@pytest.mark.parametrize("b", [4, 2])
def test_activations_are_what_autograd_keeps_for_a_layer(b: int) -> None:
    """What another layer of each kind adds to the tensors saved for the backward pass of a group."""
    from support.counted import saved

    qwen3, qwen3_5, mixed = made("Qwen3VL", (FULL,)), made("Qwen3_5", (FULL,)), made("Qwen3_5", (LINEAR, FULL))
    d3, d5, dm = sizes(qwen3), sizes(qwen3_5), sizes(mixed)
    bases = {id(base): saved(base, b, group(base)) for base in (qwen3, qwen3_5)}

    def adds(policy: Any, base: Any) -> int:
        return saved(policy, b, group(policy)) - bases[id(base)]

    found = [
        (layer_memory.saved_text(d3, WORK, 1, b), adds(made("Qwen3VL", (FULL, FULL)), qwen3)),
        (layer_memory.saved_vision(d3, WORK.patches, b), adds(made("Qwen3VL", (FULL,), 2), qwen3)),
        (layer_memory.saved_text(d5, WORK, 1, b), adds(made("Qwen3_5", (FULL, FULL)), qwen3_5)),
        (layer_memory.saved_linear(dm, WORK.tokens, b), adds(mixed, qwen3_5)),
    ]
    for predicted, kept in found:
        assert predicted == pytest.approx(kept, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize("b", [4, 2])
def test_the_peak_of_a_delta_rule_is_what_torch_allocates(b: int) -> None:
    """A linear layer over 1024 tokens without gradient, within 10%: with its inputs, and without weights and angles."""
    import torch
    from torch.distributed._tools.mem_tracker import MemTracker

    policy, tokens = made("Qwen3_5", (LINEAR, FULL)), 1024
    text, dtype = policy.model.model.language_model, torch.bfloat16 if b == 2 else torch.float32
    layer, states = copy.deepcopy(text.layers[0]).to(dtype), torch.randn(1, tokens, 384, dtype=dtype)
    angles = text.rotary_emb(states, torch.arange(tokens).expand(3, 1, tokens))
    tracker = MemTracker()
    tracker.track_external(layer, states, *angles)
    with torch.no_grad(), tracker:
        layer(states, position_embeddings=angles, attention_mask=None)
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    held = [*layer.parameters(), *angles]
    peak = snapshot["Total"] - sum(tensor.nbytes for tensor in held)
    found = layer_memory.delta_rule(sizes(policy), tokens, b) + 2 * 384 * tokens * b
    assert found == pytest.approx(peak, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "layers"), [("Qwen3VL", (FULL, FULL, FULL)), ("Qwen3_5", (LINEAR, LINEAR, LINEAR, FULL))]
)
def test_operations_of_a_forward_pass_are_those_that_torch_counts(family: str, layers: tuple[str, ...]) -> None:
    """Full squares of attention, and products inside the chunks of a delta rule, are a few percent more in torch."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from dapo_stages.models.logprobs import GroupLogprobs

    policy = made(family, layers)
    policy.attend("grouped")
    batch = policy.batch([group(policy)])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GroupLogprobs(policy, 1.0)(batch)
    found = stage_costs.forward(sizes(policy), WORK, logits=True)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_calls_of_a_decoding_step_are_those_that_torch_sees(family: str, checkpoints: Any) -> None:
    """In layers with norms of queries and keys, with gates, and with linear attention."""
    from support.counted import calls_of_a_step
    from support.prompts import groups

    from dapo_stages.config import ModelConfig
    from dapo_stages.models.policy_loading import load_policy

    policy = load_policy(checkpoints(family), ModelConfig(dtype="float32", device="cpu"))
    found = calls_of_a_step(policy, [one.prompt for one in groups(policy)])
    assert stage_costs.calls_of(sizes(policy)) == pytest.approx(found, rel=0.1)
