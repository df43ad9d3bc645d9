"""Bytes of a group's tokens: in a layer, without gradient and kept for the backward pass, and in the cache of all.

Letters as in stage_memory.py, and w the width of attention's heads, v that of the vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapo_stages.planning.dimensions import Dimensions

FLOAT = 4  # bytes of a float32, the type of images, logits and attention scores
CHUNK = 64  # tokens that a delta rule takes at a time


@dataclass(frozen=True)
class Work:
    """One group: P prompt tokens with `patches` of its images, N completions of C tokens."""

    prompt: int
    completion: int
    count: int
    patches: int
    copies: bool = True  # whether attention copies the prompt's keys for each completion: SDPA does, flex does not

    @property
    def completions(self) -> list[int]:
        """Length of each completion."""
        return [self.completion] * self.count

    @property
    def images(self) -> list[int]:
        """Patches, as if of one image."""
        return [self.patches]

    @property
    def tokens(self) -> int:
        """Tokens of the packed row."""
        return self.prompt + self.count * self.completion


def keys_of(d: Dimensions, tokens: int, b: int) -> int:
    """Bytes of keys and values of tokens in all layers with attention."""
    return 2 * d.attending * d.kv * tokens * b


def states_of(d: Dimensions, rows: int, b: int) -> int:
    """Bytes of the states of rows in all layers with linear attention, in float32, and of what the convolution saw."""
    one = d.linear
    return one.layers * (one.state * FLOAT + one.taps * one.mixed * b) * rows if one else 0


def text_layer(d: Dimensions, tokens: int, b: int) -> int:
    """One text layer without gradient: gate, up and their product, or the delta rule; the residual stream and its
    norm."""
    return max(3 * d.mlp * tokens * b, delta_rule(d, tokens, b)) + 2 * d.hidden * tokens * b + embedded(d, tokens, b)


def delta_rule(d: Dimensions, tokens: int, b: int) -> int:
    """The delta rule of one layer: what goes through its convolution, and in float32 queries, keys and values of each
    head and what chunks make of them. By torch's operations, of which it is the peak within 10%; kernels need less."""
    one = d.linear
    return ((10 * one.values + 3 * CHUNK * one.heads) * FLOAT + 2 * one.mixed * b) * tokens if one else 0


def embedded(d: Dimensions, tokens: int, b: int) -> int:
    """What all layers share: embeddings before and after inserting images, cosines and sines on three axes."""
    return tokens * (2 * d.hidden * b + 6 * d.head * FLOAT)


def vision_layer(d: Dimensions, patches: int, b: int) -> int:
    """One vision layer without gradient: its MLP, or q, k, v and their rotation (in float32)."""
    mlp, attention = 3 * d.tower.mlp + 2 * d.tower.hidden, 10 * d.tower.hidden
    return max(mlp * b, attention * b) * patches


def repeated(d: Dimensions, work: Work) -> int:
    """Keys and values of a group as its completions see them: per row, then per head. With flex, none."""
    if not work.copies:
        return 0
    return 2 * work.count * (work.prompt + work.completion) * (d.kv + d.width)


def saved_text(d: Dimensions, work: Work, groups: int, b: int) -> int:
    """What the backward pass of a text layer needs, counted with torch.autograd.graph.saved_tensors_hooks.

    Per token 4 m of the MLP, 8 h (10 h where norms in float32 lie beside bfloat16), of which w are attention's, 2 kv,
    and 2 (w + kv) of norms of queries and keys and 3 w of gates, if there are any; per group the keys and values that
    its completions see, their queries and outputs, and the prompt's output. With flex, the output of all tokens and a
    sum per head instead (not measured).
    """
    norms, others = 4 * d.hidden * FLOAT, (5 * d.hidden + d.width if b == 2 else 2 * d.hidden + 2 * d.width) * b
    if not d.biased:
        norms += (d.width + d.kv) * (FLOAT + (FLOAT if d.gates else b))
    if d.gates:
        others += (2 if b == 2 else 3) * d.width * b
    per_token = 4 * d.mlp * b + norms + others + 2 * d.kv * b
    if not work.copies:
        return groups * work.tokens * (per_token + d.width * b + d.heads * FLOAT)
    seen = 2 * work.count * (work.prompt + 2 * work.completion) * d.width + work.prompt * d.width
    return groups * (work.tokens * per_token + seen * b)


def saved_linear(d: Dimensions, tokens: int, b: int) -> int:
    """The same of a text layer with linear attention, as torch's operations compute it; kernels keep less.

    Per token 4 m of the MLP and 6 h (10 h) as above, twice what goes through the convolution, 21 times the values and 5
    of a chunk for each head, and a state per chunk. In bfloat16 12, 2 and 1 of these in float32 beside 11, 3 and 2.
    """
    one = d.linear
    if one is None:
        return 0
    norms, others = 4 * d.hidden * FLOAT, (6 if b == 2 else 2) * d.hidden * b
    values, states = (12 * FLOAT + 11 * b, FLOAT + 2 * b) if b == 2 else (21 * b, b)
    rule = values * one.values + (2 * FLOAT + 3 * b) * CHUNK * one.heads + states * one.state // CHUNK
    return tokens * (4 * d.mlp * b + norms + others + rule + 2 * one.mixed * b)


def saved_vision(d: Dimensions, patches: int, b: int) -> int:
    """The same of a vision layer: per patch 4 m of the MLP and 13 h (14 h with norms in float32), or 2 m and 11 h in
    the tower of Qwen3-VL and Qwen3.5."""
    v, m = d.tower.hidden, d.tower.mlp
    if d.tower.positions:
        return patches * (2 * m + 11 * v) * b
    return patches * (4 * m * b + 2 * v * FLOAT + (12 if b == 2 else 11) * v * b)
