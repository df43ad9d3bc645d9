"""Engines generate completions: they take rows of the prompt table and return token ids with their logprobs.

One file per engine; `rollout.engine` selects the one that samples, `evaluate.engine` the one for held-out prompts.
The logprobs are those of the distribution sampled from: logits divided by the temperature, without the tokens that are
never sampled. Those of greedy completions are at temperature 1, without filters and penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dapo_stages.handoff.shards import Row
from dapo_stages.models.tokens import Tokens


@dataclass(frozen=True)
class Completion:
    """One completion: its token ids [C] (end token included), their logprobs [C] and why it ended."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Generates completions; the same prompts and seed give the same completions."""

    tokens: Tokens
    batches_itself: bool  # pass it all prompts at once: it schedules them as memory allows

    def generate(
        self, prompts: Sequence[Row], seed: int, samples: int, *, greedy: bool = False
    ) -> list[list[Completion]]:
        """Completions of each prompt: the greedy one if requested, then the samples."""
