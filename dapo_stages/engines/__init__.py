"""What generates completions. An engine takes rows of the prompt table and gives token ids with their log-probs.

One file per engine; which of them samples is `rollout.engine`, which answers held-out questions `evaluate.engine`.
The log-probs are of the distribution sampled from: logits over temperature, without the tokens that are never sampled.
Those of greedy completions are at temperature 1, without filters and penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dapo_stages.handoff.shards import Row
from dapo_stages.models.tokens import Tokens


@dataclass(frozen=True)
class Completion:
    """One completion: its token ids [C] (end token included), their log-probs [C] and why it ended."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Samples the completions of prompts; the same prompts and seed give the same completions."""

    tokens: Tokens
    batches_itself: bool  # it is best handed all prompts there are, and schedules them as memory allows

    def generate(
        self, prompts: Sequence[Row], seed: int, samples: int, *, greedy: bool = False
    ) -> list[list[Completion]]:
        """Completions of each prompt: the greedy one if asked for, then the samples."""
