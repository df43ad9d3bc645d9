"""Updates that were not carried out, as metrics.parquet has them, and stages that gave up: in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dapo_stages.reporting.runs import iteration_folder, iterations
from dapo_stages.unfinished import halted

# Reason (models/guard.py) -> what is said of it.
REASONS = {
    "non_finite": "its loss or gradient is not finite",
    "grad_norm": "its gradient is above train.guard.max_grad_norm",
    "ratio": "its policy ratio is above train.guard.max_log_ratio",
    "engine_ratio": "log-probs of engine and trainer differ by more than train.guard.max_log_ratio",
    "no_signal": "its advantages are all 0",
}
_PREFIX = "skipped_"


def reason_of(metrics: Mapping[str, float]) -> str | None:
    """Why an update was skipped, or was to be; None if it was carried out for good."""
    return next((name.removeprefix(_PREFIX) for name in metrics if name.startswith(_PREFIX)), None)


def skipped(figures: Mapping[str, Any]) -> str:
    """`2 of 4 updates were skipped (1: its loss …)`; empty where none was."""
    updates = (figures.get("train") or {}).get("updates") or []
    reasons = Counter(reason_of(update) or "non_finite" for update in updates if update.get("skipped"))
    if not reasons:
        return ""
    each = "; ".join(f"{count}: {REASONS.get(reason, reason)}" for reason, count in reasons.items())
    return f"{reasons.total()} of {len(updates)} updates were skipped ({each})."


def halts(run: Path) -> Iterator[str]:
    """Why train-steps of a run that were begun have no output: `iteration 3, train is halted: …`."""
    for number in iterations(run):
        if why := halted(f"{iteration_folder(run, number)}/train"):
            yield f"iteration {number}, train is halted: {why}"
