"""What a loss is computed from: packed tokens, all completions of a micro-batch in one row, no padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence"]

LOG_LIMIT = 20.0  # e^20 is beyond any meaningful ratio and keeps inf · 0 = NaN out of the sums


@dataclass(frozen=True)
class LossInputs:
    """What the loss of a micro-batch is computed from: packed tensors, all [T]. Completions are whole.

    new_T, old_T: logprobs under the policy, and under the one at the start of the train-step; only new_T carries
        gradient.
    advantages_T: the completion's advantage, for each of its tokens.
    weights_T: token weights.
    mask_T: false leaves a token out of every sum; its other values do not matter then.
    sequence_ids_T: index of the token's completion, counted from 0 in the micro-batch.
    sampling_T: logprobs of the engine that sampled; None: no correction for it.
    reference_T: logprobs of the reference policy, for the KL term.
    entropy_T: entropies in nats; carries gradient where entropy is rewarded.
    entropy_mask_T: the tokens with high entropy (entropy_threshold). The others leave the policy term and the entropy
        bonus, but not the KL term or the normalizer. None: all tokens.
    marked_T: the tokens that clip_cov and kl_cov treat apart (marked_tokens.py). None: none.
    """

    new_T: Tensor
    old_T: Tensor
    advantages_T: Tensor
    weights_T: Tensor
    mask_T: Tensor
    sequence_ids_T: Tensor
    sampling_T: Tensor | None = None
    reference_T: Tensor | None = None
    entropy_T: Tensor | None = None
    entropy_mask_T: Tensor | None = None
    marked_T: Tensor | None = None

    def masked(self) -> LossInputs:
        """The same with 0 in place of everything that the mask leaves out, so that NaN there reaches no sum."""
        mask_T = self.mask_T.bool()
        nothing = torch.zeros_like(self.new_T)

        def kept(values_T: Tensor) -> Tensor:
            return torch.where(mask_T, values_T, nothing)

        return replace(
            self,
            mask_T=mask_T,
            new_T=kept(self.new_T),
            old_T=kept(self.old_T.detach()),
            advantages_T=kept(self.advantages_T),
            weights_T=kept(self.weights_T),
            sampling_T=None if self.sampling_T is None else kept(self.sampling_T.detach()),
            reference_T=None if self.reference_T is None else kept(self.reference_T.detach()),
            entropy_T=None if self.entropy_T is None else kept(self.entropy_T),
            entropy_mask_T=mask_T if self.entropy_mask_T is None else mask_T & self.entropy_mask_T.bool(),
            marked_T=torch.zeros_like(mask_T) if self.marked_T is None else mask_T & self.marked_T.bool(),
        )


def per_completion(values_T: Tensor, sequence_ids_T: Tensor) -> Tensor:
    """Sum over the completion that each token belongs to, [T] -> [T]."""
    if values_T.numel() == 0:
        return values_T
    sums = values_T.new_zeros(int(sequence_ids_T.max()) + 1).index_add(0, sequence_ids_T, values_T)
    return sums.index_select(0, sequence_ids_T)


def completion_mean(values_T: Tensor, inputs: LossInputs) -> Tensor:
    """Mean over the tokens in the loss of the completion that each token belongs to, [T] -> [T]; values elsewhere
    must be 0."""
    length_T = per_completion(inputs.mask_T.to(values_T.dtype), inputs.sequence_ids_T).clamp(min=1.0)
    return per_completion(values_T, inputs.sequence_ids_T) / length_T
