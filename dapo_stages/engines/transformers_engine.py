"""Generation with transformers: each prompt prefilled once for all its completions, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from dapo_stages.config import RolloutConfig, SamplerConfig
from dapo_stages.engines import Completion
from dapo_stages.engines.decoded_rows import Rows
from dapo_stages.engines.prompt_by_prompt import Pick, generate_separately
from dapo_stages.engines.recorded_step import Recorded
from dapo_stages.handoff.shards import Row
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.logprobs import log_distribution
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.decoding import Growing, Prefill, Prefixes, Room, of_any_size
from dapo_stages.models.shared_prefix.linear_layers import PromptStates, RowStates
from dapo_stages.models.shared_prefix.packing import Group, Prompt, by_axis
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    from transformers import Cache

# Steps until a GPU, which runs behind the program, is asked which rows are finished: it has to wait for the answer.
_LOOK = {"cuda": 16}
_BACKEND = "inductor"


class TransformersEngine:
    """A policy in memory."""

    batches_itself = False

    def __init__(self, policy: Policy, settings: RolloutConfig) -> None:
        self._policy, self._settings = policy, settings
        self.tokens = policy.tokens

    def generate(
        self, prompts: Sequence[Row], seed: int, samples: int, *, greedy: bool = False
    ) -> list[list[Completion]]:
        """Completions of each prompt: the greedy one if asked for, then the samples. Where they don't fit in the
        memory of the GPU, half of the prompts at a time; the samples are then those of other seeds."""
        try:
            return generate(
                self._policy,
                [prompt_of(row, self._policy.processor) for row in prompts],
                samples,
                self._settings.max_completion_length,
                self._settings.sampler,
                seed,
                greedy=int(greedy),
            )
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        half = len(prompts) // 2  # here, what was computed above is gone
        say(f"generation: out of memory with {len(prompts)} prompts; going on with {half} (see batch_groups)")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        first, second = prompts[:half], prompts[half:]
        return [
            *self.generate(first, 2 * seed + 1, samples, greedy=greedy),
            *self.generate(second, 2 * seed + 2, samples, greedy=greedy),
        ]


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    samples: int,
    max_length: int,
    sampler: SamplerConfig,
    seed: int,
    *,
    greedy: int = 0,
) -> list[list[Completion]]:
    """`greedy` greedy completions of each prompt and then `samples` drawn ones, of at most `max_length` tokens.

    The logprobs are those of the distribution sampled from (greedy: at temperature 1). The same prompts and seed give
    the same samples, with or without greedy completions: both share the prefill, but are decoded separately.
    """
    prefill = _prefill(policy, prompts) if policy.shares_prefixes else None
    found = []
    for is_greedy, repeats in ((True, greedy), (False, samples)):
        if not repeats:
            continue
        generator = torch.Generator(device=policy.device).manual_seed(seed)
        pick = _Picker(policy, sampler, generator, is_greedy)
        if prefill is None:
            found.append(generate_separately(policy, prompts, repeats, max_length, pick))
        else:
            found.append(_complete(prefill, repeats, max_length, pick))
    return [list(chain(*groups)) for groups in zip(*found, strict=True)]


@dataclass(frozen=True)
class _Prefilled:
    """Prompts after their single pass through the model."""

    policy: Policy
    prompts: Sequence[Prompt]
    states: Prefill
    logits: torch.Tensor  # [G, V] of the first tokens of completions


def _prefill(policy: Policy, prompts: Sequence[Prompt]) -> _Prefilled:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    policy.attend("grouped")
    base, packed = policy.base, policy.pack([Group(prompt, []) for prompt in prompts])
    cache = DynamicCache(config=base.config.get_text_config())
    for number in range(len(cache.layers)):  # all tokens in every layer, those out of a window, too
        cache.layers[number] = PromptStates(packed.sequences) if number in policy.linear_layers else DynamicLayer()
    hidden = base.model(**packed.model_inputs | {"past_key_values": cache, "use_cache": True}).last_hidden_state[0]
    starts, lengths = zip(*((span.start, span.prefix) for span in packed.spans), strict=True)
    last = torch.tensor(starts) + torch.tensor(lengths) - 1
    logits = base.get_output_embeddings()(hidden[last.to(hidden.device)])
    return _Prefilled(policy, prompts, Prefill(cache, starts, lengths, policy.windows), logits)


def _complete(prefilled: _Prefilled, repeats: int, max_length: int, pick: Pick) -> list[list[Completion]]:
    """Decode `repeats` completions of each prompt."""
    policy = prefilled.policy
    rows = Rows(policy, prefilled.prompts, repeats, max_length)
    look = _LOOK.get(policy.device.type, 1)
    decoder = (_Compiled if policy.compiled else _SharedPrefixes)(prefilled, repeats, max_length)
    policy.attend("decoding")
    logits = prefilled.logits.repeat_interleave(repeats, 0)
    while True:
        tokens, logprobs = pick(logits, rows.history)
        rows.append(tokens, logprobs)
        if rows.length == max_length:
            break
        if rows.length % look == 0:
            if rows.done:
                break
            stay = None if policy.compiled else rows.leave()
            if stay is not None:
                decoder.keep(stay)
                tokens = tokens[stay]
        logits = decoder.step(tokens)
    done = rows.completions
    return [done[i : i + repeats] for i in range(0, len(done), repeats)]


class _SharedPrefixes:
    """Runs the model step by step; the cache of a prompt is shared by its rows (shared_prefix/decoding.py).

    Completions have at most `room` tokens.
    """

    def __init__(self, prefilled: _Prefilled, repeats: int, room: int) -> None:
        from transformers import DynamicCache

        base = prefilled.policy.base
        self._forward: Callable[..., Any] = base
        self._prefixes = Prefixes(prefilled.states, repeats)
        self._cache: Cache = DynamicCache(config=base.config.get_text_config())
        for number in prefilled.states.keys:
            if prefilled.states.windows[number] is None:
                self._cache.layers[number] = Growing(room)
        for number, states in prefilled.states.linear.items():
            self._cache.layers[number] = RowStates(states, repeats)
        self._next, self._written = _next_positions(prefilled.policy, prefilled.prompts, repeats), 0
        self._axes = len(prefilled.policy.positions(prefilled.prompts[0]))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token [B] of each row; the next step may overwrite them."""
        self._written += 1
        self._prefixes.advance(self._written)
        logits = self._logits(tokens, self._next)
        self._next = self._next + 1
        return logits

    def _logits(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._forward(
            input_ids=tokens[:, None],
            position_ids=by_axis(positions.expand(self._axes, -1)[..., None]),
            past_key_values=self._cache,
            use_cache=True,
            prefixes=self._prefixes,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with these rows only."""
        self._cache.batch_select_indices(rows)
        self._prefixes.keep(rows)
        self._next = self._next[rows]


class _Compiled(_SharedPrefixes):
    """The same with a static cache that has room for complete completions, and all rows kept to the end.

    One compiled graph then serves every step, for any number of rows and any number and length of prompts. Torch
    compiles another one for one row per prompt, and others for a single prompt. On a GPU the steps of a batch are one
    CUDA graph.
    """

    def __init__(self, prefilled: _Prefilled, repeats: int, room: int) -> None:
        from transformers import Cache

        super().__init__(prefilled, repeats, room)
        self._compiled, self._forward = _compiled(prefilled.policy), self._any_size
        self._run = Recorded(super()._logits) if _records(prefilled.policy) else super()._logits
        self._prefixes = Prefixes(prefilled.states, repeats, room)
        layers = self._cache.layers
        for number, keys in prefilled.states.keys.items():
            layers[number] = Room(len(self._next), room, keys)
        for number in prefilled.states.linear:
            of_any_size(layers[number].conv_states[0], 0)
            of_any_size(layers[number].recurrent_states[0], 0)
        self._cache = Cache(layers=layers)

    def _logits(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._run(tokens, positions)

    def _any_size(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **others: Any) -> Any:
        ids, positions = of_any_size(input_ids, 0), of_any_size(position_ids, position_ids.ndim - 2)
        return self._compiled(input_ids=ids, position_ids=positions, **others)


def _records(policy: Policy) -> bool:
    """Whether steps are recorded as a CUDA graph."""
    return policy.device.type == "cuda"


def _compiled(policy: Policy) -> Callable[..., Any]:
    """Compile once per policy: later batches use the code of the first."""
    if policy.decoding is None:
        policy.decoding = torch.compile(policy.base, dynamic=False, fullgraph=True, backend=_BACKEND)
    return policy.decoding


def _next_positions(policy: Policy, prompts: Sequence[Prompt], repeats: int) -> torch.Tensor:
    """Position of each row's first completion token, [B]."""
    positions = [int(policy.positions(prompt).max()) + 1 for prompt in prompts]
    return torch.tensor(positions, device=policy.device).repeat_interleave(repeats)


class _Picker:
    """Draws tokens, and returns their logprobs under the distribution drawn from."""

    def __init__(self, policy: Policy, sampler: SamplerConfig, generator: torch.Generator, greedy: bool) -> None:
        self._suppressed, self._generator, self._greedy = policy.suppressed, generator, greedy
        self._temperature = 1.0 if greedy else sampler.temperature
        self._penalties, self._warpers = ([], []) if greedy else _processors(sampler)

    def __call__(self, logits: torch.Tensor, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B, V] and tokens so far [B, P + t] -> tokens [B] and logprobs [B]."""
        logits = logits.float()
        for penalty in self._penalties:
            logits = penalty(history, logits)
        distribution = log_distribution(logits, self._suppressed, self._temperature)
        for warper in self._warpers:
            distribution = torch.log_softmax(warper(history, distribution), -1)
        tokens = distribution.argmax(-1) if self._greedy else draw(distribution.exp(), self._generator)
        return tokens, distribution.gather(-1, tokens[:, None])[:, 0]


def draw(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token [B] for each row of probabilities [B, V].

    What torch.multinomial does for one draw, and the same tokens, without its checks, for which a GPU would wait.
    """
    race = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / race).argmax(-1)


def _processors(sampler: SamplerConfig) -> tuple[list[Any], list[Any]]:
    """transformers' own filters, in the order its generate applies them."""
    from transformers.generation import logits_process as lp

    penalties = (
        [lp.RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty)] if sampler.repetition_penalty != 1 else []
    )
    warpers: list[Any] = []
    if sampler.top_k:
        warpers.append(lp.TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        warpers.append(lp.TopPLogitsWarper(sampler.top_p))
    if sampler.min_p:
        warpers.append(lp.MinPLogitsWarper(sampler.min_p))
    return penalties, warpers
