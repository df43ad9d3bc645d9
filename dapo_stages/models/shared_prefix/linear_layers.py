"""Linear attention over packed groups: every completion starts from the state in which its prompt ended.

A gated delta net (three of four layers of Qwen3.5) has no keys: it updates a state token by token, after a convolution
over the last few tokens. Its layer computes both by two functions of its module, and hands them the keyword arguments
of the model. Here these are given the `sequences` of a packed row: prompts run from nothing, then completions from the
state and the last inputs of their prompt. What they compute is still transformers' own (its torch code, or the kernels
of fla and causal-conv1d), and gradients go from completions through the prompt's state. Without `sequences` nothing
changes. tests/models/shared_prefix compares with rows of their own, token by token and layer by layer.

Shapes: G prompts of at most P tokens, N completions of at most C, T tokens of the packed row, K taps of the
convolution.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import LinearAttentionLayer

from dapo_stages.errors import ModelError
from dapo_stages.models.shared_prefix.packing import Span


@dataclass(frozen=True)
class Sequences:
    """How linear layers run through a packed row; place T of it is a token of zeros, which leaves a state as it is."""

    prompts: torch.Tensor  # [G, P] place of each prompt token, after zeros
    completions: torch.Tensor  # [N, C] place of each completion token, before zeros
    prompt_of: torch.Tensor  # [N] the prompt of each completion
    back: torch.Tensor  # [T] place of each token in [G * P + N * C] results
    by_torch: bool = False  # whether by torch's operations where there are kernels, which have no forward mode


def sequences_of(spans: Sequence[Span], device: torch.device) -> Sequences:
    """Those of a packed row."""
    prompts = [torch.arange(span.start, span.start + span.prefix) for span in spans]
    completions = [
        places
        for span in spans
        for places in torch.arange(sum(span.lengths)).add(span.start + span.prefix).split(list(span.lengths))
    ]
    tokens = sum(map(len, (*prompts, *completions)))
    longest = max(map(len, completions), default=0)
    before = torch.nn.utils.rnn.pad_sequence(prompts, True, tokens, padding_side="left")
    after = torch.full((len(completions), longest), tokens)
    for row, places in enumerate(completions):
        after[row, : len(places)] = places
    read = torch.cat([before.flatten(), after.flatten()])
    own = (read < tokens).nonzero()[:, 0]
    back = torch.empty(tokens, dtype=torch.long).index_copy_(0, read[own], own)
    counts = torch.tensor([len(span.lengths) for span in spans])
    prompt_of = torch.arange(len(spans)).repeat_interleave(counts)
    return Sequences(before.to(device), after.to(device), prompt_of.to(device), back.to(device))


def linear_layers(model: Any) -> list[Any]:
    """The modules of a model's decoder that have a state instead of keys, in their order."""
    return [
        module for module in model.get_decoder().modules() if hasattr(module, "conv1d") and hasattr(module, "A_log")
    ]


def extend(model: Any) -> None:
    """Let the linear layers of a model run through packed rows. Raises ModelError if they are not what is expected."""
    for kind in {type(module) for module in linear_layers(model)}:
        forward = inspect.unwrap(kind.forward)
        for name, extended in _EXTENDED.items():
            own = forward.__globals__.get(name)
            if own is None or name not in forward.__code__.co_names:
                raise ModelError(
                    f"{kind.__name__}: the layers of this model do not call {name} as those of transformers 5.16 to "
                    "5.23 do, so its completions cannot share prompts. Install transformers 5.23."
                )
            if not hasattr(own, "takes_sequences"):
                forward.__globals__[name] = extended(own)


def _convolution(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A causal convolution that takes `sequences`: inputs [1, D, T], weight [D, K] -> [1, D, T]."""

    @functools.wraps(own)
    def convolution(
        inputs: torch.Tensor, weight: torch.Tensor, *args: Any, sequences: Sequences | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if sequences is None:
            return own(inputs, weight, *args, **kwargs)
        row, taps = F.pad(inputs[0], (0, 1)), weight.shape[-1]
        convolve = inspect.unwrap(own) if sequences.by_torch else own
        found = [convolve(_rows(row, sequences.prompts), weight, *args, **kwargs)]
        if len(sequences.completions):
            last = last_places(sequences, taps - 1)[sequences.prompt_of]
            block = _rows(row, torch.cat([last, sequences.completions], 1))
            found.append(convolve(block, weight, *args, **kwargs)[..., taps - 1 :])
        flat = torch.cat([part.transpose(0, 1).flatten(1) for part in found], 1)
        return flat.index_select(1, sequences.back)[None]

    convolution.takes_sequences = True  # type: ignore[attr-defined]
    return convolution


def _rule(own: Callable[..., Any]) -> Callable[..., Any]:
    """A delta rule that takes `sequences`: query, key, value [1, T, H, D], g and beta [1, T, H].

    -> [1, T, H, D], and the state of each prompt [G, H, D, D].
    """

    @functools.wraps(own)
    def rule(
        *inputs: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        sequences: Sequences | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if sequences is None:
            ends: dict[str, Any] = {"initial_state": initial_state, "output_final_state": output_final_state}
            same: tuple[torch.Tensor, torch.Tensor | None] = own(*inputs, g=g, beta=beta, **ends, **kwargs)
            return same
        update = inspect.unwrap(own) if sequences.by_torch else own
        rows = [F.pad(each[0], (*(0, 0) * (each.ndim - 2), 0, 1)) for each in (*inputs, g, beta)]

        def run(places: torch.Tensor, **ends: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
            *states, decay, rate = (each.index_select(0, places.flatten()).unflatten(0, places.shape) for each in rows)
            out, state = update(*states, g=decay, beta=rate, **ends, **kwargs)
            return out.flatten(0, 1), state

        some, states = run(sequences.prompts, initial_state=None, output_final_state=True)
        found = [some]
        if len(sequences.completions):
            assert states is not None
            start = states.index_select(0, sequences.prompt_of)
            found.append(run(sequences.completions, initial_state=start, output_final_state=False)[0])
        return torch.cat(found).index_select(0, sequences.back)[None], states

    rule.takes_sequences = True  # type: ignore[attr-defined]
    return rule


_EXTENDED = {"causal_conv1d_fn": _convolution, "torch_chunk_gated_delta_rule": _rule}


class PromptStates(LinearAttentionLayer):  # type: ignore[misc]
    """What a linear layer has in the cache of a packed row of prompts: the states of each at its end.

    The last inputs of the convolution are `conv_states[0]` [G, D, K], the states of the rule `recurrent_states[0]`.
    """

    def __init__(self, sequences: Sequences) -> None:
        super().__init__()
        self._sequences = sequences

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int = 1, **kwargs: Any
    ) -> torch.Tensor:
        """Take the inputs of the row [1, D, T], and return what the convolution is to run through: all of them."""
        self.conv_states[state_idx] = _rows(
            F.pad(conv_states[0], (0, 1)), last_places(self._sequences, conv_kernel_size)
        )
        return conv_states

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        """Take the states [G, H, D, D]."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class RowStates(LinearAttentionLayer):  # type: ignore[misc]
    """The states of B completions, each a copy of its prompt's at first, which decoding then changes in place."""

    def __init__(self, prompts: PromptStates, repeats: int) -> None:
        """Each prompt gets `repeats` rows, in order."""
        super().__init__()
        inputs, states = prompts.conv_states[0], prompts.recurrent_states[0]
        self.conv_states[0] = inputs.repeat_interleave(repeats, 0)
        self.recurrent_states[0] = states.repeat_interleave(repeats, 0)
        self.conv_kernel_size[0] = inputs.shape[-1]
        for known in (self.is_conv_states_initialized, self.is_recurrent_states_initialized, self.has_previous_state):
            known[0] = True
        self.device, self.dtype = inputs.device, inputs.dtype

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Continue with some of the rows."""
        self.reorder_cache(indices)


def last_places(sequences: Sequences, count: int) -> torch.Tensor:
    """The last `count` tokens of each prompt, [G, count], after zeros."""
    missing = count - sequences.prompts.shape[1]
    return F.pad(sequences.prompts, (max(0, missing), 0), value=len(sequences.back))[:, -count:]


def _rows(row: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[D, T + 1] and places [B, S] -> [B, D, S]"""
    block = row.index_select(1, places.flatten()).reshape(len(row), *places.shape)
    return block.transpose(0, 1).contiguous()
