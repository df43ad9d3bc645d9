"""The policy's scores of each completion token, with and without the image: logprob, entropy, divergence."""

from __future__ import annotations

import torch

from dapo_stages.models.logprobs import log_distribution
from dapo_stages.models.policy import Policy
from dapo_stages.models.precision import autocast
from dapo_stages.models.shared_prefix.packing import Packed

Scores = dict[str, torch.Tensor]  # by column of the attention files, [sum C] each


def hidden_states(policy: Policy, packed: Packed) -> torch.Tensor:
    """The hidden states that predict the completion tokens, [sum C, D], without gradient."""
    with torch.inference_mode(), autocast(policy):
        hidden: torch.Tensor = policy.base.model(**packed.model_inputs).last_hidden_state[0]
        return hidden.index_select(0, packed.predicting)


def token_scores(
    policy: Policy,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    chunk: int,
    blank: torch.Tensor | None = None,
) -> Scores:
    """Scores of completion tokens [sum C] from the hidden states [sum C, D] that predict them.

    `logprobs` and `entropy` are of the distribution sampled from, π = softmax(logits / temperature) over the tokens
    that can be sampled. With `blank`, the hidden states for the blanked image, also `blank_logprobs` under the
    distribution π' there and `visual_kl`, Σ_v π(v) log(π(v) / π'(v)) >= 0, in nats. PAPO (arXiv 2507.06448) takes the
    ratio of the sampled token alone: logprobs - blank_logprobs.

    Distributions are computed for `chunk` tokens at a time.
    """
    parts: list[Scores] = []
    with torch.inference_mode(), autocast(policy):
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            without = None if blank is None else blank[part]
            parts.append(_score(policy, hidden[part], targets[part], temperature, without))
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _score(
    policy: Policy, rows: torch.Tensor, targets: torch.Tensor, temperature: float, blank: torch.Tensor | None
) -> Scores:
    head, suppressed = policy.base.get_output_embeddings(), policy.suppressed
    seen = log_distribution(head(rows), suppressed, temperature)
    probabilities, finite = seen.exp(), seen.masked_fill(suppressed, 0)
    scores = {"logprobs": _of(seen, targets), "entropy": -(probabilities * finite).sum(-1)}
    if blank is not None:
        unseen = log_distribution(head(blank), suppressed, temperature)
        difference = finite - unseen.masked_fill(suppressed, 0)
        scores["blank_logprobs"] = _of(unseen, targets)
        scores["visual_kl"] = (probabilities * difference).sum(-1).clamp(min=0)  # rounding can make it negative
    return scores


def _of(distribution: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return distribution.gather(-1, targets[:, None])[:, 0]
