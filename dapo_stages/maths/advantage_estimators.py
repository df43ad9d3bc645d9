"""Advantages other than GRPO's, of all groups of an iteration together: so `batch` is that of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dapo_stages.maths.advantages import STD_OFFSET, Scale, advantages, std

FloatArray = NDArray[np.float64]
Estimator = str  # grpo, or a name in ESTIMATORS


@dataclass(frozen=True)
class Rewarded:
    """A group: rewards by name, NaN where there is none, their weighted total, and lengths in tokens; [N] each.

    `lengths_N` may be empty for estimators that are not OF_LENGTHS.
    """

    totals_N: FloatArray
    components: Mapping[str, FloatArray]
    lengths_N: FloatArray


def estimate(
    groups: Sequence[Rewarded], estimator: Estimator, scale: Scale, weights: Mapping[str, float]
) -> list[FloatArray]:
    """One array of advantages per group, [N]; `scale` is read by grpo, the weight of each reward by gdpo.

    Except for `reinforce_plus_plus`, which has no baseline of the group, a group whose rewards are all equal gets 0.
    """
    if estimator == "grpo":
        return advantages([group.totals_N for group in groups], scale)
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown advantage {estimator!r} (expected grpo, {', '.join(ESTIMATORS)})")
    return ESTIMATORS[estimator](groups, weights) if groups else []


def gdpo(groups: Sequence[Rewarded], weights: Mapping[str, float]) -> list[FloatArray]:
    """Each reward centered in its group and divided by its std + 1e-4, their weighted sum divided by its std over all
    groups + 1e-4 (GDPO, arXiv 2601.05242, equations 4, 7; TRL's normalize_then_sum).

    NaN takes no part in the statistics of its reward, and adds 0.
    """
    summed, scored = [], []
    for group in groups:
        total, has = np.zeros(len(group.totals_N)), np.zeros(len(group.totals_N), dtype=bool)
        for name, weight in weights.items():
            if weight == 0:
                continue
            values = np.asarray(group.components[name], dtype=np.float64)
            known = np.isfinite(values)
            has |= known
            if known.any():
                normal = (values - values[known].mean()) / (std(values[known]) + STD_OFFSET)
                total += weight * np.where(known & (np.ptp(values[known]) > 0), normal, 0.0)
        summed.append(total)
        scored.append(total[has])
    spread = std(np.concatenate(scored))
    return [total / (spread + STD_OFFSET) for total in summed]


def rloo(groups: Sequence[Rewarded], weights: Mapping[str, float]) -> list[FloatArray]:
    """R - mean of the others in the group (RLOO, arXiv 2402.14740)."""
    found = []
    for group, centered in zip(groups, _centered(groups), strict=True):
        size = len(group.totals_N)
        found.append(centered * size / max(size - 1, 1))
    return found


def opo(groups: Sequence[Rewarded], weights: Mapping[str, float]) -> list[FloatArray]:
    """R - mean of the group's tokens: completions count by their length, for a baseline that makes the variance of the
    gradient smallest (OPO, arXiv 2505.23585, equation 8)."""
    return [
        group.totals_N - np.average(group.totals_N, weights=group.lengths_N)
        if _varies(group.totals_N)
        else np.zeros(len(group.totals_N))
        for group in groups
    ]


def pass_at_k(groups: Sequence[Rewarded], weights: Mapping[str, float]) -> list[FloatArray]:
    """(best - second best) / (std + 1e-6) for the best completion of a group, else 0: the group's maximum is what
    counts (arXiv 2503.19595; verl's grpo_passk)."""
    found = []
    for group in groups:
        values, result = group.totals_N, np.zeros(len(group.totals_N))
        if _varies(values):
            second, best = np.sort(values)[-2:]
            result[int(np.argmax(values))] = (best - second) / (std(values) + 1e-6)
        found.append(result)
    return found


def reinforce_plus_plus(groups: Sequence[Rewarded], weights: Mapping[str, float]) -> list[FloatArray]:
    """R, normalized over the tokens of all groups (REINFORCE++, arXiv 2501.03262, without its KL in the reward)."""
    return _whitened([group.totals_N for group in groups], groups)


def reinforce_plus_plus_baseline(groups: Sequence[Rewarded], weights: Mapping[str, float]) -> list[FloatArray]:
    """R - mean of the group, normalized over the tokens of all groups (the same paper, with a baseline)."""
    return _whitened(_centered(groups), groups)


ESTIMATORS: dict[Estimator, Callable[[Sequence[Rewarded], Mapping[str, float]], list[FloatArray]]] = {
    "gdpo": gdpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "pass_at_k": pass_at_k,
    "opo": opo,
}
OF_LENGTHS = ("reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo")


def _centered(groups: Sequence[Rewarded]) -> list[FloatArray]:
    return advantages([group.totals_N for group in groups], "none")


def _varies(values: FloatArray) -> bool:
    return len(values) > 1 and bool(np.ptp(values) > 0)


def _whitened(values: list[FloatArray], groups: Sequence[Rewarded]) -> list[FloatArray]:
    """(value - mean) / sqrt(variance + 1e-8) with the statistics of tokens, so each value counts by its length; the
    variance has Bessel's correction (verl's masked_whiten)."""
    row, lengths = np.concatenate(values), np.concatenate([group.lengths_N for group in groups])
    if not _varies(row):
        return [np.zeros(len(one)) for one in values]
    tokens = lengths.sum()
    mean = (row * lengths).sum() / tokens
    variance = (np.square(row - mean) * lengths).sum() / max(tokens - 1, 1)
    return [(one - mean) / np.sqrt(variance + 1e-8) for one in values]
