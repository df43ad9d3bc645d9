"""Logprobs of completion tokens under the distribution that they are sampled from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.checkpoint import checkpoint

from dapo_stages.models.policy import Policy
from dapo_stages.models.precision import autocast, check_exact_head
from dapo_stages.models.precision import exact_head as exact
from dapo_stages.models.separate_rows import logits_of
from dapo_stages.models.shared_prefix.packing import Packed, SeparateRows


class GroupLogprobs(torch.nn.Module):
    """The forward pass of training: a batch in, logprob and entropy of each completion token out.

    The distribution is softmax(logits / temperature) over the tokens that can be sampled at all. Logits are computed
    only for completion rows. A packed batch with more than `chunk` of them computes `chunk` rows at a time, and again
    in the backward pass. The entropy, in nats, has a gradient only with `entropy_gradient`. With `exact_head`
    logits are computed in float32 (precision.exact_head).
    """

    def __init__(
        self,
        policy: Policy,
        temperature: float,
        chunk: int = 1024,
        *,
        entropy_gradient: bool = False,
        exact_head: bool = False,
    ) -> None:
        super().__init__()
        self.model = policy.model
        self._policy, self._suppressed = policy, policy.suppressed
        self._temperature, self._chunk, self._entropy_gradient = temperature, chunk, entropy_gradient
        self._exact_head = exact_head
        if exact_head:
            check_exact_head(policy)
        if policy.compiled:  # scaling, mask, softmax, gather and entropy in one kernel over the vocabulary
            self._pick = torch.compile(self._pick, dynamic=True)  # type: ignore[method-assign]

    @property
    def rounds(self) -> bool:
        """Whether computation and saved files are less precise than the weights under training."""
        return self._policy.dtype == torch.bfloat16

    def forward(self, batch: Packed | SeparateRows, chunks: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """-> logprobs [sum C] and entropies [sum C], float32 or better.

        The head is called for at least `chunks` chunks, some empty: with split weights all ranks must call it equally
        often.
        """
        with autocast(self._policy):
            return self._packed(batch, chunks) if isinstance(batch, Packed) else self._separate(batch)

    def _separate(self, batch: SeparateRows) -> tuple[torch.Tensor, torch.Tensor]:
        with self._head():
            found = [self._pick(logits, targets) for logits, targets in logits_of(self._policy, batch)]
        logprobs, entropies = zip(*found, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _packed(self, batch: Packed, chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self._policy.base.model(**batch.model_inputs).last_hidden_state[0]
        rows = hidden.index_select(0, batch.predicting)
        logprobs, entropies = [], []
        parts = list(zip(self._cut(rows, chunks), self._cut(batch.targets, chunks), strict=True))
        for part, targets in parts:
            if len(parts) > 1 and torch.is_grad_enabled():
                picked, entropy = checkpoint(self._chunk_logprobs, part, targets, use_reentrant=False)
            else:
                picked, entropy = self._chunk_logprobs(part, targets)
            logprobs.append(picked)
            entropies.append(entropy)
        return torch.cat(logprobs), torch.cat(entropies)

    def _cut(self, whole: torch.Tensor, chunks: int) -> list[torch.Tensor]:
        parts = list(torch.split(whole, self._chunk))
        return parts + [whole[:0]] * (chunks - len(parts))

    def _chunk_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        head = self._policy.base.get_output_embeddings()
        with self._head():
            logits = head(hidden)
        return self._pick(logits, targets)

    def _head(self) -> AbstractContextManager[None]:
        return exact(self._policy) if self._exact_head else nullcontext()

    def _pick(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distribution = log_distribution(logits, self._suppressed, self._temperature)
        with torch.set_grad_enabled(self._entropy_gradient and torch.is_grad_enabled()):
            entropy = -(distribution.exp() * distribution.masked_fill(self._suppressed, 0)).sum(-1)
        return distribution.gather(-1, targets[:, None])[:, 0], entropy


def log_distribution(logits: torch.Tensor, suppressed: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature) [rows, V], with -inf for tokens that are never sampled. At least float32."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax((logits / temperature).masked_fill(suppressed, float("-inf")), -1)
