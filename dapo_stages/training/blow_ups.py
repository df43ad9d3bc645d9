"""Why an update is skipped: its numbers have blown up, or it has no signal; and how this is explained.

The reasons are those of other trainers: a loss or gradient that is not finite (NeMo's skip_nan_grad, verl), an
extreme gradient norm (the skip-step optimizers of OLMo-core), an extreme ratio (PPO's target_kl, which ends the updates
of a rollout). All numbers are sums over all ranks, so all ranks decide alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from dapo_stages.config import TrainConfig

Reason = Literal["non_finite", "grad_norm", "ratio", "engine_ratio", "no_signal"]
# How each is explained; metrics.parquet may have others, from newer versions.
REASONS: dict[str, str] = {
    "non_finite": "its loss or gradient is not finite",
    "grad_norm": "its gradient is above train.guard.max_grad_norm",
    "ratio": "its policy ratio is above train.guard.max_log_ratio",
    "engine_ratio": "logprobs of engine and trainer differ by more than train.guard.max_log_ratio",
    "no_signal": "its advantages are all 0",
}
_PREFIX = "skipped_"


def reason_of(metrics: Mapping[str, float]) -> str | None:
    """Why an update was skipped, or should have been; None if there was no reason."""
    return next((name.removeprefix(_PREFIX) for name in metrics if name.startswith(_PREFIX)), None)


def skipped(figures: Mapping[str, Any]) -> str:
    """`2 of 4 updates were skipped (1: its loss …).`; empty if none was."""
    updates = (figures.get("train") or {}).get("updates") or []
    reasons = Counter(reason_of(update) or "non_finite" for update in updates if update.get("skipped"))
    if not reasons:
        return ""
    each = "; ".join(f"{count}: {REASONS.get(reason, reason)}" for reason, count in reasons.items())
    return f"{reasons.total()} of {len(updates)} updates were skipped ({each})."


def before_backward(sums: Mapping[str, float], settings: TrainConfig) -> Reason | None:
    """The reason to skip, from the loss and the log-ratios, before gradients are exchanged; None if there is none.

    `sums` are those of policy_loss over all micro-batches, with `loss`, `signal_max` (the largest abs(advantage)),
    `engine_diff_sum` and `engine_tokens`; with train.perception those of perception_loss, too.
    """
    if not all(math.isfinite(sums[name]) for name in ("loss", "log_ratio_sum")):  # without tokens the loss is 0
        return "non_finite"
    most = settings.guard.max_log_ratio or math.inf
    if sums["log_ratio_sum"] > most * sums["tokens"]:
        return "ratio"
    if sums["engine_diff_sum"] > most * sums["engine_tokens"]:
        return "engine_ratio"
    bonus = settings.entropy_coefficient != 0 or settings.entropy_control is not None
    others = settings.beta != 0 or bonus or sums.get("seen_tokens", 0) > 0
    idle = sums["signal_max"] == 0 and not others
    return "no_signal" if idle and settings.guard.no_signal != "train" else None


def after_step(norm: float, settings: TrainConfig) -> Reason | None:
    """The reason to skip, from the gradient's norm before clipping, which DeepSpeed gives only after the step."""
    if not math.isfinite(norm):
        return "non_finite"
    return "grad_norm" if norm > (settings.guard.max_grad_norm or math.inf) else None
