"""What engines outside transformers have in common: what they are asked for, and what is checked of their answers.

Nothing they give is tokenised again: the ids they read and wrote must be given, and be ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any, Literal

import numpy as np

from dapo_stages.config import RolloutConfig, SamplerConfig
from dapo_stages.engines import Completion
from dapo_stages.errors import EngineError
from dapo_stages.handoff.shards import Row
from dapo_stages.models.tokens import Tokens

# Added to the logits of tokens that are never sampled, the most that servers take. RolloutConfig bounds the
# temperature, which divides it: what is left of their probability is far below float32's resolution.
_NEVER = -100.0
_LOGPROB_SLACK = 1e-3  # how far above 0 rounding may lift a log-prob
# How engines are asked for the likeliest tokens; the log-probs they give then are at temperature 1.
_GREEDY = SamplerConfig.model_construct(temperature=0.0)


@dataclass(frozen=True)
class Request:
    """Completions of a prompt that are asked for together."""

    row: Row
    seed: int  # of the first; engines count on from it
    count: int
    greedy: bool


def requests(prompts: Sequence[Row], seed: int, samples: int, greedy: bool) -> list[Request]:
    """For each prompt its greedy completion, if wanted, and its samples."""
    state = np.random.SeedSequence(seed).generate_state(len(prompts))
    return [
        Request(row, int(of_row), count, is_greedy)
        for row, of_row in zip(prompts, state, strict=True)
        for count, is_greedy in ((int(greedy), True), (samples, False))
        if count
    ]


def by_prompt(found: Sequence[list[Completion]], prompts: int) -> list[list[Completion]]:
    """The answers to `requests`, together for each prompt."""
    each = len(found) // prompts
    return [list(chain(*found[start : start + each])) for start in range(0, len(found), each)]


def sampling(request: Request, settings: RolloutConfig, tokens: Tokens) -> dict[str, Any]:
    """How to sample, in the names of vLLM's SamplingParams, which servers know as well.

    All are said, so that no default of the checkpoint is in effect.
    """
    sampler = _GREEDY if request.greedy else settings.sampler
    return {
        "n": request.count,
        "seed": request.seed,
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
        "top_k": sampler.top_k or -1,
        "min_p": sampler.min_p,
        "repetition_penalty": sampler.repetition_penalty,
        "stop_token_ids": tokens.end_ids,
        "logit_bias": dict.fromkeys(sorted(tokens.suppressed_ids), _NEVER),
    }


def check_prompt(engine: str, row: Row, used: Sequence[int] | None) -> None:
    """Refuse completions of a prompt that the engine did not read as we did."""
    where, ids = f"{engine}: prompt {row['prompt_id']}", list(row["prompt_ids"])
    if used is None:
        raise EngineError(where, "no prompt token ids in the answer", "them", "Use an engine that gives token ids.")
    if list(used) != ids:
        place = next((i for i, (a, b) in enumerate(zip(used, ids, strict=False)) if a != b), min(len(used), len(ids)))
        raise EngineError(
            where,
            f"a prompt of {len(used)} tokens that differs from token {place} on",
            f"the {len(ids)} tokens that prepare-data made",
            "Serve this very policy, with its own chat template and picture settings, or run prepare-data again.",
        )


def completion(
    engine: str,
    row: Row,
    ids: Sequence[int] | None,
    logprobs: Sequence[float] | None,
    finish_reason: str | None,
    settings: RolloutConfig,
    tokens: Tokens,
) -> Completion:
    """One completion of a foreign engine, if it is whole, of tokens that may be sampled, and ended as it says."""

    def refuse(found: str, needed: str, do: str) -> EngineError:
        return EngineError(f"{engine}: prompt {row['prompt_id']}", found, needed, do)

    if not ids:
        raise refuse("no token ids of a completion", "them", "Use an engine that gives token ids.")
    if not logprobs or len(logprobs) != len(ids):
        raise refuse(f"{len(logprobs or ())} log-probs for {len(ids)} tokens", "one per token", "Ask for log-probs.")
    strange = sorted(set(ids) & tokens.suppressed_ids) or [i for i in ids if not 0 <= i < tokens.vocabulary]
    if strange:
        raise refuse(
            f"token {strange[0]}, which is never sampled",
            "completions without special tokens",
            "Use an engine that honours logit_bias.",
        )
    if not all(isfinite(value) and value <= _LOGPROB_SLACK for value in logprobs):
        raise refuse("log-probs that are none", "finite numbers up to 0", "Look into the engine's precision.")
    ended = ids[-1] in tokens.end_ids
    reason: Literal["stop", "length"] = "stop" if ended else "length"
    if finish_reason != reason or (not ended and len(ids) != settings.max_completion_length):
        how = "with an end token" if ended else "without an end token"
        raise refuse(
            f"{len(ids)} tokens {how} that finished by {finish_reason!r}",
            f"an end token, or rollout.max_completion_length={settings.max_completion_length} tokens",
            "Give the engine room for prompt and completion, and no stop words of its own.",
        )
    return Completion(list(ids), [min(value, 0.0) for value in logprobs], reason)
