"""Generation with transformers' own generate, prompt by prompt, for models that cannot share a prompt's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dapo_stages.engines import Completion
from dapo_stages.engines.decoded_rows import cut
from dapo_stages.models.policy import Policy
from dapo_stages.models.separate_rows import row_inputs
from dapo_stages.models.shared_prefix.packing import Prompt

Pick = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def generate_separately(
    policy: Policy, prompts: Sequence[Prompt], num_generations: int, max_length: int, pick: Pick
) -> list[list[Completion]]:
    """`num_generations` completions of each prompt; `pick` takes logits and history and returns tokens and logprobs."""
    from transformers import GenerationConfig, LogitsProcessorList

    settings = GenerationConfig(
        max_new_tokens=max_length,
        eos_token_id=policy.end_ids,
        pad_token_id=policy.pad_id,
        do_sample=False,  # this and the next four override the checkpoint's own settings
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
    )
    found: list[list[Completion]] = []
    for prompt in prompts:
        chosen = _Chosen(pick)
        inputs = row_inputs(policy, prompt, [[]] * num_generations)
        tokens = policy.base.generate(
            **inputs, generation_config=settings, logits_processor=LogitsProcessorList([chosen])
        )
        logprobs = torch.stack(chosen.logprobs, 1)
        found.append(cut(tokens[:, len(prompt.ids) :], logprobs, frozenset(policy.end_ids)))
    return found


class _Chosen:
    """A logits processor that leaves one token per row, the one drawn, and records its logprob."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick
        self.logprobs: list[torch.Tensor] = []  # [N] per step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, logprobs = self._pick(scores, input_ids)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
