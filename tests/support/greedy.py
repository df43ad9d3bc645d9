"""What transformers' own generate says of a prompt."""

from __future__ import annotations

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Prompt
from support.prompts import own_row


def stir(policy: Policy) -> None:
    """Larger weights in the layers: with random ones of the usual size every token is followed by itself. In float64,
    so that rounding does not decide between tokens of nearly equal probability."""
    policy.model.double()
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(5)


def greedy_of_transformers(policy: Policy, prompt: Prompt, most: int) -> tuple[list[int], list[float]]:
    """The greedy completion of up to `most` tokens, and their logprobs."""
    policy.attend("separate")  # transformers' own attention, with its masks
    policy.base.model.rope_deltas = None
    found = policy.model.generate(
        **own_row(policy, prompt),
        do_sample=False,
        temperature=None,
        max_new_tokens=most,
        suppress_tokens=policy.suppressed.nonzero()[:, 0].tolist(),
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = found.sequences[0, len(prompt.ids) :]
    scores = torch.stack(found.scores)[:, 0].double().log_softmax(-1)
    return ids.tolist(), scores.gather(-1, ids[:, None])[:, 0].tolist()
