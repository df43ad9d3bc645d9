"""Memory of a rank, stage by stage: live bytes at the peak, by name, from the sizes of model and work.

The overhead of allocators is not included. The formulas are those of docs/sizing.md, and are compared with measured
peaks by tests/planning/test_measured_memory.py. Letters: h hidden, m width of the MLP, L layers, V vocabulary, kv width
of the keys, P prompt and C completion tokens, N completions of a prompt, T tokens of a packed row, b bytes of a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dapo_stages.planning.dimensions import Dimensions
from dapo_stages.planning.layer_memory import (
    FLOAT,
    Work,
    delta_rule,
    embedded,
    keys_of,
    repeated,
    saved_linear,
    saved_text,
    saved_vision,
    states_of,
    text_layer,
    vision_layer,
)

Parallel = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"]
PROMPTS_KEPT = 32  # prepared prompts that train-step keeps in host memory
BUCKET = 500_000_000  # values: DeepSpeed's reduce_bucket_size and allgather_bucket_size
LIVE = 1_000_000_000  # values: its stage3_max_live_parameters
# Bytes of a weight; nf4 has a scale of a byte per block of 64, and a float32 per 256 of these (double quantization).
QUANTIZED = {"nf4": 0.5 + 1 / 64 + FLOAT / (64 * 256), "int8": 1.0}


@dataclass(frozen=True)
class Passes:
    """What score-attention computes besides masses."""

    logprobs: bool = False  # a whole pass and the head
    blanks: int = 0  # passes with the images changed, which include logprobs
    rollout: bool = False
    directions: int = 0  # passes in forward mode, which include logprobs

    @property
    def whole(self) -> bool:
        """Whether the pass goes through all of the last layer and the head."""
        return self.logprobs or self.blanks > 0 or self.directions > 0


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak by what holds them: on the device, and in host memory if that is separate."""

    device: dict[str, int]
    host: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.device.values())


_MASSES = Passes()


def weights_of(d: Dimensions, b: int, quantization: str | None = None) -> int:
    """Bytes of the weights; quantization applies to the text's linear layers."""
    matrices = d.matrices * (QUANTIZED[quantization] if quantization else b)
    return int(matrices) + (d.parameters - d.matrices) * b


def rollout(d: Dimensions, work: Work, groups: int, b: int, weights: int) -> Memory:
    """Generation for `groups` prompts at a time: the largest of prefill, distributing its cache, and decoding."""
    rows, prompts = groups * work.count, groups * work.prompt
    prefix = keys_of(d, prompts, b) + states_of(d, groups, b)
    states = 3 * rows * d.linear.state if d.linear else 0  # of a layer: as it was, what is added, as it is
    step = max(5 * rows * d.heads * (work.prompt + work.completion), states) * FLOAT + 5 * rows * d.vocabulary * FLOAT
    decode = {
        "cache of the prompts": prefix,
        "cache of the completions": keys_of(d, rows * work.completion, b) + states_of(d, rows, b),
        "scores and logits of a step": step,
    }
    share = {"cache of the prompts": 2 * prefix}
    prefill = {
        "cache of the prompts": prefix,
        "prefill": max(text_layer(d, prompts, b), vision_layer(d, groups * work.patches, b)),
    }
    peak = max(prefill, share, decode, key=_sum)
    return Memory({"weights": weights, **_images(d, groups * work.patches), **peak}, {})


def score(
    d: Dimensions, work: Work, groups: int, chunk_rows: int, b: int, weights: int, passes: Passes = _MASSES
) -> Memory:
    """Scoring `groups` in one row: layers without gradient, attention group by group, `chunk_rows` rows of scores.

    Logits are of `chunk_rows` tokens: with images changed, two distributions, their probabilities and mean. Rollout
    adds as many rows of the prompt's scores. Forward mode holds a derivative beside each value, and the scores of all
    completion rows of a group.
    """
    tokens, patches = groups * work.tokens, groups * work.patches
    own = work.count * work.completion * d.width
    steps = min(chunk_rows, work.count * work.completion)
    scores = 4 * d.heads * steps * (work.prompt + work.completion) * FLOAT
    states = (2 * d.hidden + 3 * d.width + 2 * d.kv) * tokens * b + embedded(d, tokens, b)
    keys = (2 * own + d.kv * work.tokens) * b if b == 2 else (2 * own + d.width * work.prompt) * FLOAT
    attention = states + max(scores + keys, repeated(d, work) * b)
    peak = {
        "one layer": max(text_layer(d, tokens, b), vision_layer(d, patches, b)),
        "attention of a group": 0,
    }
    if attention > peak["one layer"]:
        peak = {"one layer": states, "attention of a group": attention - states}
    candidates = [peak]
    if passes.whole:
        held = (tokens + (1 + passes.blanks) * groups * work.count * work.completion) * d.hidden * b
        rows = min(chunk_rows, groups * work.count * work.completion)
        logits = (9 if passes.blanks else 5) * rows * d.vocabulary * FLOAT
        candidates.append({"hidden states": held, "logits": logits})
    if passes.rollout:
        rolled = 3 * d.heads * min(chunk_rows, work.prompt) * work.prompt * FLOAT
        keys = d.width * (work.prompt + work.count * work.completion) * FLOAT
        candidates.append({"one layer": states, "rollout in the prompt": rolled + keys})
    if passes.directions:
        seen = work.count * work.completion * (work.prompt + work.completion) + work.prompt**2
        candidates.append({"one layer, twice": 2 * states, "derivatives of attention": 5 * d.heads * seen * b})
        directions = passes.directions * tokens * d.hidden * FLOAT
        candidates = [one | {"directions": directions} for one in candidates]
    peak = max(candidates, key=_sum)
    return Memory({"weights": weights, **_images(d, patches), **_mask(work, groups), **peak}, {})


@dataclass(frozen=True)
class Training:
    """How train-step is configured."""

    groups: int  # of the iteration, on this rank
    micro_batches: int  # per update, on this rank
    checkpointing: bool
    logprob_chunk: int
    trained: int  # parameters that get gradients
    frozen: int  # bytes of the others
    parallel: Parallel
    ranks: int
    foreach: bool  # the optimizer's step works on all weights at once, as torch's does on CUDA
    reference: int  # bytes of the reference policy, held whole while its logprobs are computed; 0 without a KL term
    views: int = 0  # of each prompt, for a perception term
    recompute: bool = False  # whether these go through the model together with their prompts
    sums: int = FLOAT  # bytes of what gradients are added up in between ranks


def train(d: Dimensions, work: Work, t: Training, prompts: int, b: int) -> Memory:
    """An update: weights, gradients, optimizer, and the largest of head, backward through a layer, optimizer step.

    `work` is a micro-batch: `work.count` completions in total, of `prompts` groups. Views that are computed in every
    update are further groups in it.
    """
    if t.recompute:
        work, prompts = replace(work, count=(1 + t.views) * work.count), (1 + t.views) * prompts
    each = replace(work, count=max(1, work.count // prompts))
    autocast = b == 2 and t.parallel in ("single", "ddp")  # float32 weights, cast for each operation
    states, step, host = _states(d, t, b)
    tokens, patches, rows = prompts * each.tokens, prompts * work.patches, prompts * each.count * work.completion
    one, linear, every = saved_text(d, each, prompts, b), saved_linear(d, tokens, b), saved_vision(d, patches, b)
    layers = d.attending * one + (d.layers - d.attending) * linear + d.tower.layers * every
    residual = FLOAT if autocast else b
    kept = (tokens * d.layers * d.hidden + patches * d.tower.layers * d.tower.hidden) * residual
    gradients = 3 * d.hidden * tokens * b
    gradients += max(3 * d.mlp * tokens * b + repeated(d, each) * b, delta_rule(d, tokens, b))
    activations = (kept if t.checkpointing else layers) + embedded(d, tokens, b)
    logits = 5 * min(rows, t.logprob_chunk) * d.vocabulary * FLOAT
    cast = {"weights cast to bfloat16": 2 * t.trained} if autocast else {}
    head = {"activations": activations, "logits": logits, **cast}
    backward = {
        "activations": activations + (max(one, linear, every) if t.checkpointing else 0),
        "gradients of a layer": gradients,
    }
    backward |= {} if t.checkpointing else cast
    recall = {"reference policy": t.reference, "logits": logits} if t.reference else {}
    peak = max(head, backward, step, recall, key=_sum)
    if t.parallel == "fsdp2" and _sum(splitting := _before_it_is_split(d, t, b)) > _sum(states) + _sum(peak):
        states, peak = {}, splitting
    host["prepared prompts"] = (1 + t.views) * min(PROMPTS_KEPT, t.groups) * work.patches * d.tower.patch * FLOAT
    return Memory({**states, **_images(d, patches), **_mask(each, prompts), **peak}, host)


def vllm(d: Dimensions, weights: int, b: int, share: int, gpus: int, length: int) -> int:
    """Rows of `length` tokens that fit in vLLM's cache: its share of the memory of `gpus` that split the model, without
    the weights.

    Negative if the model is too large.
    """
    return (share * gpus - weights) // (keys_of(d, length, b) + states_of(d, 1, b))


def _states(d: Dimensions, t: Training, b: int) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Bytes of weights, gradients and optimizer on a rank; of the optimizer's step; and of the host.

    For DeepSpeed as in its own estimates (runtime/zero: estimate_zero2_model_states_mem_needs and others): for each
    trained weight 2 bytes, and 18 split over the ranks: gradients in bfloat16 and float32, float32 weights, moments.
    """
    n, frozen, ranks = t.trained, t.frozen, t.ranks
    if t.parallel in ("single", "ddp"):
        weights = frozen + n * FLOAT
        gradients = n * FLOAT * (2 if t.parallel == "ddp" else 1)  # DDP keeps a copy in its buckets
        states = {"weights": weights, "gradients": gradients if t.micro_batches > 1 else 0, "moments": 2 * n * FLOAT}
        step = {"gradients in the step": 0 if t.micro_batches > 1 else gradients, "step": n * FLOAT if t.foreach else 0}
        return states, step, {}
    shard = n // ranks
    if t.parallel == "fsdp2":
        exact = {"gradients": shard * FLOAT, "moments": 2 * shard * FLOAT}
        # Two layers at a time, and what is in none of them, which stays together from forward to backward; of one layer
        # and of the rest the gradient as it is and as it is added up.
        layer = max(d.layer, d.linear_layer)
        gathered = (2 * layer + _outside_layers(d)) * b
        buckets = min(n, max(layer, _outside_layers(d))) * (b + t.sums)
        split = {"weights": frozen // ranks + shard * FLOAT, "gathered weights": gathered}
        return {**split, **exact, "gradients that are sent": buckets}, {}, {}
    # Two of DeepSpeed's, and where gradients are added up in another type, one of these in it.
    buckets = min(BUCKET, n) * (2 * b + (t.sums if t.sums != b else 0))
    host: dict[str, int] = {}
    if t.parallel.startswith("zero3"):
        live = min(LIVE, d.parameters) * b
        states = {"weights": (frozen + n * b) // ranks, "gathered weights": live}
    else:
        states = {"weights": frozen + n * b}
    gradients = n * b if t.parallel == "zero1" else shard * b
    exact = {"gradients": gradients + shard * FLOAT, "float32 weights and moments": 3 * shard * FLOAT}
    if t.parallel.endswith("offload"):
        host = {"offloaded optimizer": shard * (b + 4 * FLOAT)}
    else:
        states |= exact
    return {**states, "buckets": buckets}, {}, host


def _outside_layers(d: Dimensions) -> int:
    """Weights of no layer: embedding and head. The vision tower's patches and merger, less than a layer, count as
    part of its layers."""
    return d.parameters - d.stack - d.vision


def _before_it_is_split(d: Dimensions, t: Training, b: int) -> dict[str, int]:
    """The policy as it was loaded, and the exact weights of the largest part that FSDP2 splits at once."""
    largest = min(t.trained, max(d.layer, d.linear_layer, _outside_layers(d)))
    return {"weights as loaded": d.parameters * b, "exact weights of a part": largest * FLOAT if b == 2 else 0}


def _mask(work: Work, groups: int) -> dict[str, int]:
    """FlexAttention's mask of a packed row: four lists of its blocks of 128 × 128, and three bounds of each token."""
    if work.copies:
        return {}
    blocks = -(-groups * work.tokens // 128)
    return {"mask of blocks": 4 * 4 * blocks**2 + 3 * 4 * groups * work.tokens}


def _images(d: Dimensions, patches: int) -> dict[str, int]:
    """Prepared images, once as prompts and once joined in the packed row."""
    return {"images": 2 * patches * d.tower.patch * FLOAT}


def _sum(items: Mapping[str, int]) -> int:
    return sum(items.values())
