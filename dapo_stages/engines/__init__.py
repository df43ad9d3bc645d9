"""What generates completions. An engine takes prompts and gives token ids with their log-probs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Completion:
    """One completion: its token ids [C] (end token included), their log-probs [C] and why it ended."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
