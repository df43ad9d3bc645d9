"""Requests to vLLM and to servers, and the checks of what they return.

Nothing is tokenized again: an engine must return the token ids that it read and wrote, and those of the prompt must be
ours.
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

_LOGPROB_SLACK = 1e-3  # how far above 0 rounding may lift a logprob
# Requests the likeliest tokens; engines then return logprobs at temperature 1.
_GREEDY = SamplerConfig.model_construct(temperature=0.0)


@dataclass(frozen=True)
class Request:
    """Completions of one prompt, requested together."""

    row: Row
    seed: int  # of the first completion; engines count up from it
    count: int
    greedy: bool


def requests(prompts: Sequence[Row], seed: int, samples: int, greedy: bool) -> list[Request]:
    """For each prompt a request for its greedy completion, if wanted, and one for its samples."""
    state = np.random.SeedSequence(seed).generate_state(len(prompts))
    return [
        Request(row, int(of_row), count, is_greedy)
        for row, of_row in zip(prompts, state, strict=True)
        for count, is_greedy in ((int(greedy), True), (samples, False))
        if count
    ]


def by_prompt(found: Sequence[list[Completion]], prompts: int) -> list[list[Completion]]:
    """The results of `requests`, joined for each prompt."""
    each = len(found) // prompts
    return [list(chain(*found[start : start + each])) for start in range(0, len(found), each)]


def sampling(request: Request, settings: RolloutConfig, tokens: Tokens) -> dict[str, Any]:
    """Sampling settings by the names of vLLM's SamplingParams, which servers accept too.

    All of them are set, so that none of the checkpoint's own defaults applies.
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
    }


def check_prompt(engine: str, row: Row, used: Sequence[int] | None) -> None:
    """Raise EngineError unless the engine read the same prompt token ids as we did."""
    where, ids = f"{engine}: prompt {row['prompt_id']}", list(row["prompt_ids"])
    if used is None:
        raise EngineError(where, "the response has no prompt token ids", "Use an engine that returns token ids.")
    if list(used) != ids:
        place = next((i for i, (a, b) in enumerate(zip(used, ids, strict=False)) if a != b), min(len(used), len(ids)))
        raise EngineError(
            where,
            f"the engine's prompt ({len(used)} tokens) does not match prepare-data's ({len(ids)} tokens) from token "
            f"{place} on",
            "Serve this very policy, with its own chat template and image settings, or run prepare-data again.",
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
    """One completion. Raises EngineError if it lacks token ids or logprobs, or if they or its end are not valid."""
    where = f"{engine}: prompt {row['prompt_id']}"
    if not ids:
        raise EngineError(where, "a completion has no token ids", "Use an engine that returns token ids.")
    if not logprobs or len(logprobs) != len(ids):
        raise EngineError(
            where,
            f"expected one logprob per token, got {len(logprobs or ())} for {len(ids)} tokens",
            "Use an engine that returns logprobs.",
        )
    strange = sorted(set(ids) & tokens.suppressed_ids) or [i for i in ids if not 0 <= i < tokens.vocabulary]
    if strange:
        raise EngineError(
            where,
            f"a completion contains token {strange[0]}, which must never be sampled",
            "Use an engine that honors logit_bias.",
        )
    if not all(isfinite(value) and value <= _LOGPROB_SLACK for value in logprobs):
        raise EngineError(where, "logprobs must be finite and at most 0", "Check the engine's precision.")
    ended = ids[-1] in tokens.end_ids
    reason: Literal["stop", "length"] = "stop" if ended else "length"
    if finish_reason != reason or (not ended and len(ids) != settings.max_completion_length):
        how = "with an end token" if ended else "without an end token"
        raise EngineError(
            where,
            f"a completion of {len(ids)} tokens {how} has finish_reason {finish_reason!r}, expected 'stop' with an end "
            f"token or 'length' at max_completion_length={settings.max_completion_length} tokens",
            "Give the engine enough context for prompt and completion, and no stop words of its own.",
        )
    return Completion(list(ids), [min(value, 0.0) for value in logprobs], reason)
