"""What ties a policy to its images: KL terms between what it says of an image and of a changed one.

PAPO (arXiv 2507.06448) pushes the policy away from what it says without the image; DVRP (2601.06801) does the same, and
draws it toward what it says of a slightly noised image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dapo_stages.maths.kl import k3


@dataclass(frozen=True)
class View:
    """Completion tokens with a changed image in place of their own. Tensors are [T]; they carry gradient or not.

    logprobs_T: logprobs of the sampled tokens; entropy_T: entropies in nats.
    toward: the policy is drawn toward this view, not pushed away from it.
    """

    logprobs_T: Tensor
    entropy_T: Tensor
    toward: bool = False


@dataclass(frozen=True)
class PerceptionTerm:
    """Weights of the term, named like the settings of `train.perception`.

    own_entropy: the entropy with the image itself is penalized as well, as PAPO does and DVRP does not.
    """

    coefficient: float
    entropy_coefficient: float = 0.0
    own_entropy: bool = True
    clamp: float | None = None


def perception_loss(
    new_T: Tensor, entropy_T: Tensor, views: Sequence[View], divisor_T: Tensor, term: PerceptionTerm, normalizer: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """What is added to the loss of a micro-batch, and sums for the metrics. T: only tokens in the loss with an image.

        d_t(view) = min(k3(view_t - new_t), clamp),  k3(x) = exp(x) - x - 1
        loss      = sum_t (coefficient (sum_toward d_t - sum_away d_t) + entropy_coefficient (H_t + sum_views H_t))
                    / divisor_t / normalizer

    k3 of q/p with p, q the sampled token's probabilities with the image and with the changed one estimates KL(p || q);
    it is the implicit perception loss of PAPO (equation 2), whose code clamps it at 10. A token beyond the clamp has no
    gradient. Token weights play no part: PAPO and VPPO (2510.09285) average this term over all tokens, too. `divisor_T`
    and `normalizer` are those of the policy term (objective.divisor_of, normalizer_of).

    With views that carry no gradient, as in PAPO's code by default, only new_T is moved, and the entropies of the views
    are constants.
    """
    size_T = torch.zeros_like(new_T)
    entropies_T = entropy_T if term.own_entropy else torch.zeros_like(entropy_T)
    sums: dict[str, Tensor] = {"seen_tokens": new_T.new_tensor(float(new_T.numel()))}
    for view in views:
        divergence_T = k3(view.logprobs_T - new_T)
        clamped_T = divergence_T if term.clamp is None else divergence_T.clamp(max=term.clamp)
        size_T = size_T + clamped_T if view.toward else size_T - clamped_T
        entropies_T = entropies_T + view.entropy_T
        name = "robustness" if view.toward else "perception"
        sums[f"{name}_kl_sum"] = divergence_T.detach().sum()
        sums[f"{name}_entropy_sum"] = view.entropy_T.detach().sum()
        sums[f"{name}_clamped"] = (divergence_T.detach() > clamped_T.detach()).sum()
    size_T = term.coefficient * size_T
    if term.entropy_coefficient != 0:
        size_T = size_T + term.entropy_coefficient * entropies_T
    return (size_T / divisor_T).sum() / normalizer, sums
