"""Convolution and delta rule over packed groups: as token by token in rows of their own, written out in float64."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus
from transformers.models.qwen3_5 import modeling_qwen3_5

from dapo_stages.errors import ModelError
from dapo_stages.models.shared_prefix.linear_layers import (
    Sequences,
    _convolution,
    _rule,
    extend,
    last_places,
    sequences_of,
)
from dapo_stages.models.shared_prefix.packing import Group, Prompt, Span, pack

GROUPS = [(2, (1, 3)), (5, ()), (1, (2, 70)), (67, (4,))]  # tokens of prompts, shorter and longer than 4 taps and 64
CONVOLVE = inspect.unwrap(modeling_qwen3_5.causal_conv1d_fn)
UPDATE = inspect.unwrap(modeling_qwen3_5.torch_chunk_gated_delta_rule)


def spans() -> tuple[Span, ...]:
    groups = [Group(Prompt(torch.zeros(p, dtype=torch.long), None, None), [[0] * c for c in cs]) for p, cs in GROUPS]
    return pack(groups, [torch.arange(p)[None] for p, _ in GROUPS], torch.device("cpu")).spans


def own_rows() -> list[tuple[list[int], int]]:
    """The places of each prompt, and of each prompt with a completion; how many of the last ones are its own."""
    found, start = [], 0
    for prompt, completions in GROUPS:
        places = list(range(start, start + prompt))
        found.append((places, prompt))
        start += prompt
        for length in completions:
            found.append((places + list(range(start, start + length)), length))
            start += length
    return found


def test_a_packed_row_is_convolved_as_rows_of_their_own() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(1, 3, sum(p + sum(cs) for p, cs in GROUPS)).double(), torch.randn(3, 4).double()
    want = torch.empty_like(inputs)
    for places, own in own_rows():
        for number in range(len(places) - own, len(places)):
            seen = [inputs[0, :, places[number - back]] * weight[:, 3 - back] for back in range(min(number, 3) + 1)]
            want[0, :, places[number]] = torch.nn.functional.silu(torch.stack(seen).sum(0))
    sequences = sequences_of(spans(), torch.device("cpu"))
    found = _convolution(CONVOLVE)(inputs, weight, None, activation="silu", sequences=sequences)
    assert torch.allclose(found, want, atol=1e-12)
    last = last_places(sequences, 4).tolist()
    assert last == [[155, 155, 0, 1], [7, 8, 9, 10], [155, 155, 155, 11], [147, 148, 149, 150]]  # 155 is a zero


def test_completions_start_from_the_state_of_their_prompt(exact: None) -> None:
    """S ← e^g S, then S ← S + β k (v - Sᵀk)ᵀ, and the output is Sᵀq / √D, of keys and queries with norm 1."""
    torch.manual_seed(0)
    tokens = sum(p + sum(cs) for p, cs in GROUPS)
    query, key, value = torch.randn(3, 1, tokens, 2, 8).double()
    decay, rate = -softplus(torch.randn(1, tokens, 2)).double(), torch.rand(1, tokens, 2).double()
    q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (query, key))
    want, ends = torch.empty_like(value), []
    for places, own in own_rows():
        state = torch.zeros(2, 8, 8, dtype=torch.float64)
        for number, t in enumerate(places):
            state = state * decay[0, t].exp()[:, None, None]
            wrong = value[0, t] - torch.einsum("hkv,hk->hv", state, k[0, t])
            state = state + torch.einsum("h,hk,hv->hkv", rate[0, t], k[0, t], wrong)
            if number >= len(places) - own:
                want[0, t] = torch.einsum("hkv,hk->hv", state, q[0, t]) / 8**0.5
        ends += [state] if own == len(places) else []
    sequences, rule = sequences_of(spans(), torch.device("cpu")), _rule(UPDATE)
    options = {"use_qk_l2norm_in_kernel": True, "sequences": sequences}
    found, states = rule(query, key, value, g=decay, beta=rate, **options)
    assert torch.allclose(found, want, atol=1e-10)
    assert states is not None and torch.allclose(states, torch.stack(ends), atol=1e-10)


@pytest.mark.parametrize("by_torch", [False, True])
def test_kernels_are_left_where_they_cannot_be_differentiated_forward(by_torch: bool) -> None:
    calls = []

    def kernel(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append("kernel")
        return inputs

    def operations(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append("torch")
        return inputs

    kernel.__wrapped__ = operations  # type: ignore[attr-defined]
    none, both = torch.empty(0, 0).long(), torch.tensor([0, 1])
    sequences = Sequences(both[None], none, none.flatten(), both, by_torch)
    _convolution(kernel)(torch.zeros(1, 1, 2), torch.zeros(1, 4), sequences=sequences)
    assert calls == ["torch" if by_torch else "kernel"]


def test_layers_that_compute_otherwise_are_refused() -> None:
    class Other(torch.nn.Module):
        conv1d, A_log = None, None

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    model: Any = SimpleNamespace(get_decoder=lambda: torch.nn.Sequential(Other()))
    with pytest.raises(ModelError) as refusal:
        extend(model)
    assert str(refusal.value) == (
        "Other: the layers of this model do not call causal_conv1d_fn as those of transformers 5.16 to 5.23 do, so its "
        "completions cannot share prompts. Install transformers 5.23."
    )
