"""Time and bytes of an iteration: operations and traffic over the rates of a device. Formulas: docs/sizing.md.

A multiply and an add are two operations. Only matrix products are counted, so real rates are a share of the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from dapo_stages.planning.dimensions import Dimensions
from dapo_stages.planning.layer_memory import FLOAT, Work, keys_of, states_of
from dapo_stages.planning.stage_memory import Passes

# Bytes on disk per completion token, measured on shards of the embedded and a 14 M model: ids, logprobs and texts; five
# masses and the VGR; the weight.
COMPLETION_BYTES, ATTENTION_BYTES, WEIGHT_BYTES = 12, 22, 4
SEGMENTS = 4  # of layers; each keeps attention per image token in float16
# Calls of torch in a decoding step, per layer and outside of layers, as counted by tests/planning/test_stage_costs.py.
LAYER_CALLS, STEP_CALLS = 80, 70
NORMS_CALLS, GATES_CALLS = 16, 19  # more in a layer with norms of queries and keys, and in one with gates
LINEAR_CALLS = 124  # in a layer with linear attention

_MASSES = Passes()


@dataclass(frozen=True)
class Rates:
    """Operations and bytes per second that one rank reaches."""

    operations: float
    memory: float
    disk: float  # of all ranks together
    link: float  # between ranks
    call: float = 0.0  # seconds between two calls of torch, including Python: a device cannot be faster
    hashed: float = 1.43e9  # SHA-256 in one thread, measured
    cached: float = 2.4e9  # tensors from files in the page cache, in one process, measured

    def loading(self, size: float) -> float:
        """Seconds for every rank to read the same bytes; the disk is read once."""
        return size / min(self.disk, self.cached)

    def verifying(self, size: float) -> float:
        """Seconds for one thread, or every rank by itself, to hash the same bytes."""
        return size / min(self.disk, self.hashed)


class Lengths(Protocol):
    """One group in numbers: tokens of its prompt and of each completion, and patches of each image."""

    @property
    def prompt(self) -> int: ...
    @property
    def completions(self) -> Sequence[int]: ...
    @property
    def images(self) -> Sequence[int]: ...


def forward(d: Dimensions, group: Lengths, *, logits: bool) -> float:
    """Operations of a forward pass over one group, with its prompt once.

    2 · tokens · weights of the layers' matrices; 4 h for each pair of a query and a key it sees (scores, then values);
    6 for each value of the states of linear layers; the head on completion rows; the same over patches, which see only
    their window except in the full layers.
    """
    pairs, completed = _pairs(group.prompt) + completion_pairs(group), sum(group.completions)
    text = 2 * (group.prompt + completed) * d.matrices + _attention(d, pairs) + _linear(d, group.prompt + completed)
    head = 2 * completed * d.hidden * d.vocabulary if logits else 0
    return float(text + head + sum(_image(d, patches) for patches in group.images))


def scoring(d: Dimensions, group: Lengths, passes: Passes = _MASSES) -> float:
    """Operations of a forward pass without head, and of the scores of completion rows again: SDPA does not return them.

    The last layer stops at its queries and keys: its values, attention, output projection and MLP are not needed.
    Logprobs need all of it, and the head; images changed are another such pass each. Rollout computes the prompt's
    scores again as well. In forward mode products with weights are done twice, those of attention three times, and
    images once.
    """
    seen, tokens = completion_pairs(group), group.prompt + sum(group.completions)
    again = 2 * d.attending * d.width * (seen + (_pairs(group.prompt) if passes.rollout else 0))
    if passes.whole:
        whole, images = forward(d, group, logits=True), sum(_image(d, patches) for patches in group.images)
        moved = 2 * whole - images + _attention(d, _pairs(group.prompt) + seen) + _linear(d, tokens)
        return (1 + passes.blanks) * whole + passes.directions * moved + again
    unneeded = 2 * tokens * (d.hidden * d.kv + d.hidden * d.width + 3 * d.hidden * d.mlp)
    unneeded += 4 * d.width * (_pairs(group.prompt) + seen)
    return forward(d, group, logits=False) + again - unneeded


def decoding(d: Dimensions, work: Work, groups: int, b: int, rates: Rates, *, called: bool) -> float:
    """Seconds to generate `groups` groups: a prefill, then a step per token, bound by reading weights and caches from
    memory, by arithmetic, or (`called`: not compiled) by calls of torch, whichever takes longest. The states of linear
    layers are read and written."""
    rows = groups * work.count
    prefill = groups * forward(d, Work(work.prompt, 0, 0, work.patches), logits=False) / rates.operations
    cache = keys_of(d, 1, b) * groups * (work.prompt + work.count * work.completion / 2) + 2 * states_of(d, rows, b)
    text = d.parameters - d.vision
    calls = rates.call * calls_of(d) if called else 0.0
    step = max((text * b + cache) / rates.memory, (2 * text * rows + _linear(d, rows)) / rates.operations, calls)
    return prefill + work.completion * step


def calls_of(d: Dimensions) -> int:
    """Calls of torch in a decoding step."""
    layer = LAYER_CALLS + (0 if d.biased else NORMS_CALLS) + (GATES_CALLS if d.gates else 0)
    return layer * d.attending + LINEAR_CALLS * (d.layers - d.attending) + STEP_CALLS


def update(
    d: Dimensions,
    work: Work,
    *,
    checkpointing: bool,
    updates: int,
    views: int = 0,
    recompute: bool = False,
    passes: int = 1,
) -> float:
    """Operations of training on one group: in each of `passes`, a forward pass, a backward pass of twice as many, and
    another forward pass if activations are recomputed; before them, one for the old logprobs of all mini-batches but
    the first.

    Each view of a perception term is another such group in every update (`recompute`), or a single forward pass.
    """
    trained = passes * (4 if checkpointing else 3)
    forwards = trained + (1 - 1 / updates) + views * (trained if recompute else 1)
    return forwards * forward(d, work, logits=True)


def traffic(
    parallel: str,
    trained: int,
    parameters: int,
    micro_batches: int,
    forwards: float,
    ranks: int,
    b: int,
    sums: int = FLOAT,
) -> float:
    """Bytes that a rank sends for one update, with `forwards` additional passes without gradient.

    Gradients are summed in values of `sums` bytes, by default in float32. DDP and ZeRO-1 all-reduce them once per
    update, ZeRO-2 once per micro-batch: its reduce_scatter is an all-reduce (use_multi_rank_bucket_allreduce). ZeRO-3
    and FSDP2 scatter them per micro-batch, and gather all weights for every forward and backward; the others gather
    those trained once per update.
    """
    share = (ranks - 1) / ranks
    if parallel == "ddp":
        return 2 * share * trained * sums
    if parallel == "fsdp2" or parallel.startswith("zero3"):
        return share * (trained * sums * micro_batches + parameters * b * (2 * micro_batches + forwards))
    reductions = 1 if parallel == "zero1" else micro_batches
    return share * trained * (2 * sums * reductions + b)


def state_traffic(parallel: str, state: int, ranks: int) -> float:
    """Bytes that a rank sends while a state is written: DeepSpeed assembles each tensor on all ranks, by all-reduce, or
    by gathering under ZeRO-3 and FSDP2."""
    if parallel in ("single", "ddp"):
        return 0.0
    return (ranks - 1) / ranks * state * (1 if parallel.startswith(("zero3", "fsdp2")) else 2)


def asked_for(target: int, size: float, ranks: int, share: float, oversample: float, most: int) -> tuple[int, int]:
    """Shards of `size` groups until `target` groups are informative, if a `share` of them is: (sampled, needed).

    As in rollout, each round asks for `oversample` times what is missing; every rank samples equally many shards, and
    extra ones count for the next round. `most` is the limit over all rounds.
    """
    kept, needed, sampled = 0.0, 0, 0
    while kept < target and needed < most:
        portion = min(ceil(oversample * (target - kept) / size - 1e-9), most - needed)
        missing = max(0, needed + portion - sampled)
        sampled = min(most, sampled + ceil(missing / ranks) * ranks)
        needed += portion
        kept += portion * size * share
    return sampled, needed


def completion_pairs(group: Lengths) -> int:
    """Pairs of a completion's query and a key it sees: the whole prompt, and its own tokens up to itself."""
    return sum(length * group.prompt + _pairs(length) for length in group.completions)


def shards(d: Dimensions, work: Work, groups: int, image_bytes: int, patch_completions: int) -> dict[str, int]:
    """Bytes of the Parquet files of an iteration, by stage."""
    tokens = groups * work.count * work.completion
    looks = patch_completions * work.completion * (work.patches // d.tower.merge) * SEGMENTS * 2
    return {
        "rollout": groups * (image_bytes + 4 * work.prompt) + tokens * COMPLETION_BYTES,
        "score-attention": tokens * ATTENTION_BYTES + looks,
        "weight-tokens": tokens * WEIGHT_BYTES,
    }


def _pairs(length: int) -> int:
    return length * (length + 1) // 2


def _attention(d: Dimensions, pairs: int) -> int:
    """Operations of attention in all layers, for pairs of a query and a key."""
    return 4 * d.attending * d.width * pairs


def _linear(d: Dimensions, tokens: int) -> int:
    """Operations of the delta rule in all layers: each token is multiplied with the state three times, to recall, to
    write and to read. An estimate: computed in chunks, the products inside of these come on top."""
    return 6 * d.linear.layers * d.linear.state * tokens if d.linear else 0


def _image(d: Dimensions, patches: int) -> float:
    t = d.tower
    v = t.hidden
    matrices = 4 * v * v + (3 if t.gated else 2) * v * t.mlp
    pairs = t.full_layers * patches**2 + (t.layers - t.full_layers) * patches * min(t.window, patches)
    mergers = (1 + t.deepstack) * (patches // t.merge) * (t.wide * t.wide + t.wide * t.out)
    return float(2 * patches * t.patch * v + t.layers * 2 * patches * matrices + 4 * v * pairs + 2 * mergers)
