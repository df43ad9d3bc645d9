"""Generation with transformers: each prompt prefilled once for all its completions, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dapo_stages.config import SamplerConfig
from dapo_stages.engines import Completion
from dapo_stages.models.inputs import pad_left
from dapo_stages.models.logprobs import log_distribution
from dapo_stages.models.packing import Prompt
from dapo_stages.models.policy import Policy

NAME = "transformers"

# Rows leave the batch when this share of them is finished: copying the cache costs about one decoding step.
_LEAVE_AT = 0.25


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
    policy.attend("separate")
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    rows = _Rows(policy, prompts, num_generations)
    pick = _Picker(policy, sampler, generator, greedy)
    logits = rows.prefill()
    for _ in range(max_length):
        tokens, logprobs = pick(logits, rows.history)
        if rows.append(tokens, logprobs, max_length):
            break
        logits = rows.step()
    done = rows.completions
    return [done[i : i + num_generations] for i in range(0, len(done), num_generations)]


class _Rows:
    """The unfinished rows of a batch: cache, masks, positions, and the tokens so far."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], repeats: int) -> None:
        self._policy, self._prompts, self._repeats = policy, prompts, repeats
        device = policy.device
        pad = policy.processor.tokenizer.pad_token_id
        ids, mask = pad_left([prompt.ids for prompt in prompts], pad if pad is not None else policy.end_ids[0])
        self._prompt_ids, self._prompt_mask = ids.to(device), mask.to(device)
        positions = [policy.positions(prompt) for prompt in prompts]
        longest = ids.shape[1]
        self._prompt_positions = torch.stack(
            [torch.nn.functional.pad(p, (longest - p.shape[1], 0)) for p in positions], 1
        ).to(device)
        rows = len(prompts) * repeats
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._logprobs: list[list[float]] = [[] for _ in range(rows)]
        self._ended = [False] * rows
        self._alive = torch.arange(rows, device=device)
        self._finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self._next = torch.tensor([int(p.max()) + 1 for p in positions], device=device).repeat_interleave(repeats)
        self._ends = torch.tensor(policy.end_ids, device=device)
        self._mask = self._prompt_mask.repeat_interleave(repeats, 0)
        self.history = self._prompt_ids.repeat_interleave(repeats, 0)
        self._cache: Any = None

    def prefill(self) -> torch.Tensor:
        """Run the prompts, keep their cache for every completion, and give the first logits [rows, V]."""
        from transformers import DynamicCache

        base = self._policy.base
        self._cache = DynamicCache(config=base.config.get_text_config())
        inputs: dict[str, Any] = {}
        pixels = [p.pixel_values for p in self._prompts if p.pixel_values is not None]
        grids = [p.image_grid_thw for p in self._prompts if p.image_grid_thw is not None]
        if pixels:
            device = self._policy.device
            inputs = {"pixel_values": torch.cat(pixels).to(device), "image_grid_thw": torch.cat(grids).to(device)}
        output = base(
            input_ids=self._prompt_ids,
            attention_mask=self._prompt_mask,
            position_ids=self._prompt_positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )
        self._cache.batch_repeat_interleave(self._repeats)
        logits: torch.Tensor = output.logits[:, -1].repeat_interleave(self._repeats, 0)
        return logits

    def append(self, tokens: torch.Tensor, logprobs: torch.Tensor, max_length: int) -> bool:
        """Take the next token of each row; True when all rows are done."""
        was_finished = self._finished.tolist()
        ended = torch.isin(tokens, self._ends)
        for row, done, token, logprob, end in zip(
            self._alive.tolist(), was_finished, tokens.tolist(), logprobs.tolist(), ended.tolist(), strict=True
        ):
            if not done:
                self._ids[row].append(token)
                self._logprobs[row].append(logprob)
                self._ended[row] = end
        self._finished = self._finished | ended
        self.history = torch.cat([self.history, tokens[:, None]], 1)
        if bool(self._finished.all()):
            return True
        if float(self._finished.float().mean()) >= _LEAVE_AT:
            self._leave()
        return self.history.shape[1] - self._prompt_ids.shape[1] >= max_length

    def step(self) -> torch.Tensor:
        """Logits [rows, V] after the last appended tokens."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
        output = self._policy.base(
            input_ids=self.history[:, -1:],
            attention_mask=self._mask,
            position_ids=self._next.expand(3, -1)[..., None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._next = self._next + 1
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    @property
    def completions(self) -> list[Completion]:
        """In the order of prompts and samples."""
        return [
            Completion(ids, logprobs, "stop" if ended else "length")
            for ids, logprobs, ended in zip(self._ids, self._logprobs, self._ended, strict=True)
        ]

    def _leave(self) -> None:
        keep = (~self._finished).nonzero()[:, 0]
        self._cache.batch_select_indices(keep)
        self._alive, self._finished = self._alive[keep], self._finished[keep]
        self._next, self._mask, self.history = self._next[keep], self._mask[keep], self.history[keep]


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
