"""What a train-step computes before its first update: logprobs of policy, views and reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dapo_stages.config import TrainConfig
from dapo_stages.terminal.console import progress
from dapo_stages.training.batches import MicroBatch, MiniBatch
from dapo_stages.training.update import Trainer


def recall(trainer: Trainer, work: Sequence[MiniBatch], settings: TrainConfig, reference: Trainer | None) -> None:
    """Add to micro-batches what their updates compare with.

    The first mini-batch needs no old logprobs: its new ones are the old ones, and later passes have these. The views of
    a perception term are another matter.
    """
    everything = [batch for part in work for batch in part.batches]
    for batch in _each("old logprobs", [batch for part in work[1:] for batch in part.batches]):
        batch.old = trainer.logprobs(batch)
    if settings.perception is not None and not settings.perception.recompute:
        for batch in _each("logprobs with changed images", everything):
            batch.views = trainer.view_scores(batch)
    if reference is not None:
        for batch in _each("reference logprobs", everything):
            batch.reference = reference.logprobs(batch)


def _each(what: str, batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
    with progress(f"train-step: {what}", len(batches)) as advance:
        for batch in batches:
            yield batch
            advance(1, "")
