"""The policy's scores of each completion token, with and without the image: logprob, entropy, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

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
    blanks: Sequence[torch.Tensor] = (),
    head: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Scores:
    """Scores of completion tokens [sum C] from the hidden states [sum C, D] that predict them.

    `logprobs` and `entropy` are of the distribution sampled from, π = softmax(logits / temperature) over the tokens
    that can be sampled. With `blanks`, the hidden states [sum C, D] of each draw of the blanked images, also scores of
    the distributions π' there, all in nats:

    - `blank_logprobs`: log of the sampled token's probability, averaged over the draws before the logarithm;
    - and, each a mean over the draws, `blank_entropy`, of π'; `visual_kl`, Σ_v π(v) log(π(v) / π'(v)) >= 0; `jsd`,
      [KL(π ‖ m) + KL(π' ‖ m)] / 2 with m = (π + π') / 2, from 0 to log 2; and `k3` of the sampled token,
      q/p - log(q/p) - 1 >= 0 with its probability p under π and q under π', PAPO's term (arXiv 2507.06448). It is inf
      where q/p overflows.

    Distributions are computed for `chunk` tokens at a time, from the logits that `head` makes of hidden states; by
    default it is the policy's.
    """
    head = policy.base.get_output_embeddings() if head is None else head
    parts: list[Scores] = []
    with torch.inference_mode(), autocast(policy):
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            unseen = (head(blank[part]) for blank in blanks)  # one at a time in memory
            parts.append(_score(policy, head(hidden[part]), targets[part], temperature, unseen))
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def vision_cosine(hidden_TD: torch.Tensor, packed: Packed, vision: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cosine of the last hidden state that predicted each completion token to the mean one of its images, [sum C].

    `vision` has a mask of each group's packed tokens; NaN for a group without images. VGPO (arXiv 2604.09349) weighs
    tokens by it.
    """
    found, place = [], 0
    lengths = [sum(span.lengths) for span in packed.spans]
    rows = hidden_TD.index_select(0, packed.predicting).split(lengths)
    for mask, own in zip(vision, rows, strict=True):
        found.append(cosine(own, hidden_TD[place : place + len(mask)][mask.to(hidden_TD.device)]))
        place += len(mask)
    return torch.cat(found).cpu()


def cosine(own_CD: torch.Tensor, vision_VD: torch.Tensor) -> torch.Tensor:
    """Cosine of each hidden state to the mean one of the images, [C]; NaN without images."""
    return torch.nn.functional.cosine_similarity(own_CD.float(), vision_VD.float().mean(0)[None], dim=-1)


def _score(
    policy: Policy, logits: torch.Tensor, targets: torch.Tensor, temperature: float, blanks: Iterable[torch.Tensor]
) -> Scores:
    suppressed = policy.suppressed
    seen = log_distribution(logits, suppressed, temperature)
    scores = {"logprobs": _of(seen, targets), "entropy": _entropy(seen, suppressed)}
    draws: list[Scores] = []
    for blank in blanks:
        unseen = log_distribution(blank, suppressed, temperature)
        draws.append(_without(seen, unseen, suppressed, targets))
    means = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]} if draws else {}
    if draws:
        logs = torch.stack([draw["blank_logprobs"] for draw in draws])
        means["blank_logprobs"] = logs.logsumexp(0) - math.log(len(draws))
    return scores | means


def _without(seen: torch.Tensor, unseen: torch.Tensor, suppressed: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Scores of one draw from the log distributions [rows, V] with and without the images."""
    p, q = seen.exp(), unseen.exp()
    mean = torch.logaddexp(seen, unseen) - math.log(2)
    seen_kl, unseen_kl = (_kl(one, log, mean, suppressed) for one, log in ((p, seen), (q, unseen)))
    ratio = _of(unseen, targets) - _of(seen, targets)
    return {
        "blank_logprobs": _of(unseen, targets),
        "blank_entropy": _entropy(unseen, suppressed),
        "visual_kl": _kl(p, seen, unseen, suppressed),
        "jsd": ((seen_kl + unseen_kl) / 2).clamp(max=math.log(2)),
        "k3": (ratio.expm1() - ratio).clamp(min=0),
    }


def _kl(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor, suppressed: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of each row; rounding can make it negative."""
    return (p * (log_p - log_q).masked_fill(suppressed, 0)).sum(-1).clamp(min=0)


def _entropy(log: torch.Tensor, suppressed: torch.Tensor) -> torch.Tensor:
    return -(log.exp() * log.masked_fill(suppressed, 0)).sum(-1)


def _of(distribution: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return distribution.gather(-1, targets[:, None])[:, 0]
