"""How much each token's logprob depends on the image's embeddings, to first order: the norm of its gradient.

With g_t = ∂ log π(token_t) / ∂E, where E [V, D] are the image's embeddings as they enter the first text layer, the norm
‖g_t‖ of every token would take a backward pass per token. Instead, for directions u_k of independent random signs,
E[(g_t · u_k)²] = ‖g_t‖², and one pass in forward mode gives g_t · u_k for all tokens of a batch at once. So the norm is
estimated by the root of the mean of (g_t · u_k)² over K = GRADIENT_DIRECTIONS of them (Hutchinson's estimator), with a
relative standard deviation of about 1 / √(2 K) per token, whatever the other tokens are. Every direction costs a
forward pass with a derivative beside each value. Features that a model adds to deeper layers (Qwen3-VL) are held fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from dapo_stages.config.attention import GRADIENT_DIRECTIONS
from dapo_stages.models.logprobs import log_distribution
from dapo_stages.models.policy import Policy
from dapo_stages.models.precision import autocast
from dapo_stages.models.shared_prefix.packing import Packed


def directions(vision: Sequence[torch.Tensor], rngs: Sequence[np.random.Generator], width: int) -> list[torch.Tensor]:
    """GRADIENT_DIRECTIONS tensors [T, D] of random signs in the rows of images and 0 elsewhere.

    `vision` has a mask [T_i] for the packed tokens of each group, `rngs` a generator of each: a group's directions do
    not depend on the batch it is in.
    """
    drawn = []
    for mask, rng in zip(vision, rngs, strict=True):
        signs = torch.zeros(GRADIENT_DIRECTIONS, len(mask), width)
        signs[:, mask] = torch.from_numpy(
            rng.integers(0, 2, (GRADIENT_DIRECTIONS, int(mask.sum()), width)) * 2 - 1
        ).float()
        drawn.append(signs)
    return list(torch.cat(drawn, 1))


def vision_gradient(
    policy: Policy, packed: Packed, directions: Iterable[torch.Tensor], temperature: float, chunk: int
) -> torch.Tensor:
    """√ of the mean over `directions` u [T, D] of (∂ log π(token) / ∂embeddings · u)², for completion tokens [sum C].

    π = softmax(logits / temperature) over the tokens that can be sampled; its logits are computed `chunk` tokens at a
    time. Attention is computed by matrix products, which forward mode needs: [N, H, C, P + C] scores of a group; linear
    layers by torch's operations instead of kernels.
    """
    squares, count = torch.zeros(len(packed.targets)), 0
    for direction in directions:
        slopes = _slopes(policy, packed, direction.to(policy.device), temperature, chunk)
        squares, count = squares.to(slopes) + slopes.square(), count + 1
    return (squares / max(1, count)).sqrt()


def _slopes(policy: Policy, packed: Packed, direction: torch.Tensor, temperature: float, chunk: int) -> torch.Tensor:
    """Derivatives of the logprobs of the completion tokens along one direction, [sum C], on the CPU."""
    head, inputs = policy.base.get_output_embeddings(), packed.model_inputs
    inputs.pop("block_masks", None)
    if packed.sequences is not None:
        inputs["sequences"] = replace(packed.sequences, by_torch=True)
    parts = []
    with torch.no_grad(), autocast(policy), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        with _moved(policy, direction):
            hidden = policy.base.model(**inputs).last_hidden_state[0].index_select(0, packed.predicting)
        for start in range(0, len(packed.targets), chunk):
            targets = packed.targets[start : start + chunk]
            logs = log_distribution(head(hidden[start : start + chunk]), policy.suppressed, temperature)
            slopes = forward_ad.unpack_dual(logs.gather(-1, targets[:, None])[:, 0]).tangent
            parts.append(torch.zeros(len(targets)) if slopes is None else slopes.cpu())
    return torch.cat(parts)


@contextmanager
def _moved(policy: Policy, direction: torch.Tensor) -> Iterator[None]:
    """Let the embeddings that enter the text layers have this tangent."""

    def move(_: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        embeddings = inputs["inputs_embeds"]
        return args, inputs | {"inputs_embeds": forward_ad.make_dual(embeddings, direction[None].to(embeddings))}

    hook = policy.base.get_decoder().register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
