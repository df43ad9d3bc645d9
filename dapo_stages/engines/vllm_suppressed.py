"""Tokens that are never sampled, given to vLLM once.

As logit_bias of each request they would be lists of some hundred ids, which vLLM's older runner builds again for all
rows whenever one begins or ends, and of which the newer one takes at most 1024. vLLM has two interfaces for this, one
for each of its runners, and chooses the runner itself (0.32: the second with Triton, if it can do all that is asked;
the first on CPUs). This is both.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as First

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as Second
except ImportError:

    class Second:  # type: ignore[no-redef]
        """A vLLM with one runner has no second interface."""


NAME = "dapo_stages.engines.vllm_suppressed:Suppressed"
IDS = "dapo_stages_suppressed"  # in vLLM's additional_config


class Suppressed(First, Second):  # type: ignore[misc]
    """Sets the logits of these tokens to -inf, in all rows."""

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool = False) -> None:
        """`where` is the device, or the second runner's state, which knows it."""
        ids = vllm_config.additional_config[IDS]
        self._ids = torch.tensor(ids, dtype=torch.long, device=getattr(where, "device", where))

    def apply(self, logits: torch.Tensor, context: Any = None) -> torch.Tensor:
        """Logits [rows, V], changed in place."""
        return logits.index_fill_(-1, self._ids, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        """No: the likeliest token may be one of them."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Nothing depends on the requests."""
