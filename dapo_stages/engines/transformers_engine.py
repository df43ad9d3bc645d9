"""Generation with transformers: each prompt prefilled once for all its completions, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from dapo_stages.config import RolloutConfig, SamplerConfig
from dapo_stages.engines import Completion
from dapo_stages.engines.separate import generate_separately
from dapo_stages.models.decoding import Prefixes
from dapo_stages.models.inputs import pad_left, prompt_of
from dapo_stages.models.logprobs import log_distribution
from dapo_stages.models.packing import Group, Prompt
from dapo_stages.models.policy import Policy
from dapo_stages.shards import Row

# Rows leave the batch when this share of them is finished: arranging the others anew costs a part of a step.
_LEAVE_AT = 0.25
_BACKEND = "inductor"


class TransformersEngine:
    """A policy in memory."""

    batches_itself = False

    def __init__(self, policy: Policy, settings: RolloutConfig) -> None:
        self._policy, self._settings = policy, settings
        self.tokens = policy.tokens

    def generate(self, prompts: Sequence[Row], seed: int) -> list[list[Completion]]:
        """`rollout.num_generations` completions of each prompt."""
        return generate(
            self._policy,
            [prompt_of(row, self._policy.processor) for row in prompts],
            self._settings.num_generations,
            self._settings.max_completion_length,
            self._settings.sampler,
            seed,
        )


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    num_generations: int,
    max_length: int,
    sampler: SamplerConfig,
    seed: int,
    *,
    greedy: bool = False,
) -> list[list[Completion]]:
    """`num_generations` completions of each prompt, of at most `max_length` tokens.

    The log-probs are those of the distribution sampled from (greedy: at temperature 1). The same prompts and seed
    give the same completions.
    """
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    pick = _Picker(policy, sampler, generator, greedy)
    if not policy.shares_prefixes:
        return generate_separately(policy, prompts, num_generations, max_length, pick)
    rows = _Rows(policy, prompts, num_generations)
    if policy.compiled:
        decoder: _SharedPrefixes = _Compiled(policy, prompts, num_generations, max_length)
    else:
        decoder = _SharedPrefixes(policy, prompts, num_generations)
    logits = decoder.start()
    while True:
        rows.append(*pick(logits, rows.history))
        if rows.done or rows.length == max_length:
            break
        stay = None if policy.compiled else rows.leave()
        if stay is not None:
            decoder.keep(stay)
        logits = decoder.step(rows.history[:, -1])
    done = rows.completions
    return [done[i : i + num_generations] for i in range(0, len(done), num_generations)]


class _Rows:
    """The unfinished rows of a batch, and the tokens of all."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], repeats: int) -> None:
        rows = len(prompts) * repeats
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._logprobs: list[list[float]] = [[] for _ in range(rows)]
        self._ended = [False] * rows
        self._alive = torch.arange(rows, device=policy.device)
        self._finished = torch.zeros(rows, dtype=torch.bool, device=policy.device)
        self._ends = torch.tensor(policy.end_ids, device=policy.device)
        pad = policy.processor.tokenizer.pad_token_id
        self._pad = policy.end_ids[0] if pad is None else pad
        ids, _ = pad_left([prompt.ids for prompt in prompts], self._pad)
        self.history = ids.to(policy.device).repeat_interleave(repeats, 0)
        self._prompt_length = self.history.shape[1]

    def append(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Take the next token of each row."""
        ended = torch.isin(tokens, self._ends)
        for row, done, token, logprob, end in zip(
            self._alive.tolist(),
            self._finished.tolist(),
            tokens.tolist(),
            logprobs.tolist(),
            ended.tolist(),
            strict=True,
        ):
            if not done:
                self._ids[row].append(token)
                self._logprobs[row].append(logprob)
                self._ended[row] = end
        self._finished = self._finished | ended
        self.history = torch.cat([self.history, tokens[:, None]], 1)

    @property
    def length(self) -> int:
        """Tokens of the longest completion so far."""
        return self.history.shape[1] - self._prompt_length

    @property
    def done(self) -> bool:
        return bool(self._finished.all())

    def leave(self) -> torch.Tensor | None:
        """Drop finished rows once there are enough of them; gives the places of those that stay."""
        if float(self._finished.float().mean()) < _LEAVE_AT:
            return None
        keep = (~self._finished).nonzero()[:, 0]
        self._alive, self._finished, self.history = self._alive[keep], self._finished[keep], self.history[keep]
        return keep

    @property
    def completions(self) -> list[Completion]:
        """In the order of prompts and samples."""
        return [
            Completion(ids, logprobs, "stop" if ended else "length")
            for ids, logprobs, ended in zip(self._ids, self._logprobs, self._ended, strict=True)
        ]


class _SharedPrefixes:
    """Runs the model: each prompt once, for its prefill and for every step (models/decoding.py)."""

    _room: int | None = None

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], repeats: int) -> None:
        from transformers import DynamicCache

        self._policy, self._repeats = policy, repeats
        self._packed = policy.pack([Group(prompt, []) for prompt in prompts])
        self._cache = DynamicCache(config=policy.base.config.get_text_config())
        self._next = _next_positions(policy, prompts, repeats)
        self._forward: Callable[..., Any] = policy.base

    def start(self) -> torch.Tensor:
        """First logits [B, V]."""
        from transformers import DynamicCache

        self._policy.attend("grouped")
        base, spans = self._policy.base, self._packed.spans
        inputs = self._packed.model_inputs | {"past_key_values": self._cache, "use_cache": True}
        hidden = base.model(**inputs).last_hidden_state[0]
        last = torch.tensor([span.start + span.prefix - 1 for span in spans], device=hidden.device)
        starts, lengths = [span.start for span in spans], [span.prefix for span in spans]
        self._prefixes = Prefixes(self._cache, starts, lengths, self._repeats, self._room)
        self._cache = DynamicCache(config=base.config.get_text_config())  # of completions from here on
        self._policy.attend("decoding")
        logits: torch.Tensor = base.get_output_embeddings()(hidden[last]).repeat_interleave(self._repeats, 0)
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token [B] of each row."""
        output = self._forward(
            input_ids=tokens[:, None],
            position_ids=self._next.expand(3, -1)[..., None],
            past_key_values=self._cache,
            use_cache=True,
            prefixes=self._prefixes,
        )
        self._next = self._next + 1
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows."""
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(rows)
        self._prefixes.keep(rows)
        self._next = self._next[rows]


class _Compiled(_SharedPrefixes):
    """The same with shapes that never change: a static cache with room for whole completions, and all rows to the end.

    Then one compiled graph serves every step of every batch of this size.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], repeats: int, room: int) -> None:
        super().__init__(policy, prompts, repeats)
        self._room, self._written = room, 0
        self._forward = _compiled(policy.base)

    def start(self) -> torch.Tensor:
        from transformers import StaticCache

        logits = super().start()
        self._cache = StaticCache(self._policy.base.config.get_text_config(), max_cache_len=self._room)
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._written += 1
        self._prefixes.advance(self._written)
        return super().step(tokens.clone())  # a column of the history, whose stride grows, would compile anew


@lru_cache(maxsize=1)
def _compiled(model: torch.nn.Module) -> Callable[..., Any]:
    """Compiled once a process: code that is made in one batch serves the next."""
    return torch.compile(model, dynamic=False, fullgraph=True, backend=_BACKEND)


def _next_positions(policy: Policy, prompts: Sequence[Prompt], repeats: int) -> torch.Tensor:
    """Position of each row's first completion token, [B]."""
    positions = [int(policy.positions(prompt).max()) + 1 for prompt in prompts]
    return torch.tensor(positions, device=policy.device).repeat_interleave(repeats)


class _Picker:
    """Draws tokens, and says how likely they were under the distribution drawn from."""

    def __init__(self, policy: Policy, sampler: SamplerConfig, generator: torch.Generator, greedy: bool) -> None:
        self._suppressed, self._generator, self._greedy = policy.suppressed, generator, greedy
        self._temperature = 1.0 if greedy else sampler.temperature
        self._penalties, self._warpers = ([], []) if greedy else _processors(sampler)

    def __call__(self, logits: torch.Tensor, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B, V] and tokens so far [B, P + t] -> tokens [B] and log-probs [B]."""
        logits = logits.float()
        for penalty in self._penalties:
            logits = penalty(history, logits)
        distribution = log_distribution(logits, self._suppressed, self._temperature)
        for warper in self._warpers:
            distribution = torch.log_softmax(warper(history, distribution), -1)
        if self._greedy:
            tokens = distribution.argmax(-1)
        else:
            tokens = torch.multinomial(distribution.exp(), 1, generator=self._generator)[:, 0]
        return tokens, distribution.gather(-1, tokens[:, None])[:, 0]


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
