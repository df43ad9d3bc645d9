"""The completions of a batch while they are decoded, on the device: no step waits for the one before it to end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from dapo_stages.engines import Completion
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Prompt

# Finished rows leave the batch once they are this share of it: rearranging the others takes part of a step's time.
_LEAVE_AT = 0.25


class Rows:
    """The rows of a batch that have not left it, and the tokens of all. Finished rows may go on; it is not kept."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], repeats: int, room: int) -> None:
        """`repeats` rows of each prompt, in order, with room for so many tokens each."""
        rows, device = len(prompts) * repeats, policy.device
        self._tokens = torch.zeros(rows, room, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, room, dtype=torch.float64, device=device)
        self._alive = torch.arange(rows, device=device)
        self._finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self._ends = torch.tensor(policy.end_ids, device=device)
        longest = max(len(prompt.ids) for prompt in prompts)
        # Padded with a token of the prompt itself, as the repetition penalty depends on which tokens a row contains.
        padded = [torch.cat([prompt.ids[:1].expand(longest - len(prompt.ids)), prompt.ids]) for prompt in prompts]
        self.history = torch.stack(padded).to(device).repeat_interleave(repeats, 0)
        self._prompt_length = self.history.shape[1]

    def append(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Take the next token of each row, and its logprob, [B]."""
        self._tokens[:, self.length].index_copy_(0, self._alive, tokens)
        self._logprobs[:, self.length].index_copy_(0, self._alive, logprobs.double())
        self._finished = self._finished | torch.isin(tokens, self._ends)
        self.history = torch.cat([self.history, tokens[:, None]], 1)

    @property
    def length(self) -> int:
        """Tokens of the longest completion so far."""
        return self.history.shape[1] - self._prompt_length

    @property
    def done(self) -> bool:
        """Whether all rows are finished; a GPU is waited for."""
        return bool(self._finished.all())

    def leave(self) -> torch.Tensor | None:
        """Drop finished rows once there are enough of them; returns the indices of the rest, or None. A GPU is waited
        for."""
        if float(self._finished.float().mean()) < _LEAVE_AT:
            return None
        keep = (~self._finished).nonzero()[:, 0]
        self._alive, self._finished, self.history = self._alive[keep], self._finished[keep], self.history[keep]
        return keep

    @property
    def completions(self) -> list[Completion]:
        """In the order of prompts and samples."""
        ids, logprobs = self._tokens[:, : self.length], self._logprobs[:, : self.length]
        return cut(ids, logprobs, frozenset(self._ends.tolist()))


def cut(tokens: torch.Tensor, logprobs: torch.Tensor, ends: Collection[int]) -> list[Completion]:
    """Completions from rows of tokens [B, T] and their logprobs [B, T], each cut after its first end token."""
    found: list[Completion] = []
    for ids, values in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        found.append(Completion(ids[:length], values[:length], "stop" if ids[length - 1] in ends else "length"))
    return found
