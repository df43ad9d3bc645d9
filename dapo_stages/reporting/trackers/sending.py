"""The same figures for TensorBoard and Weights & Biases: each point once, however often a report is made.

All comes from the files of the run's reports, so a tracker can be switched on at any time. What each was given before
is noted beside its files, iteration by iteration: what is there already is not gone through point by point.
"""

from __future__ import annotations

from collections.abc import Sequence

from dapo_stages.reporting.trackers.feed import Feed
from dapo_stages.terminal.console import say


def track(feed: Feed, trackers: Sequence[str]) -> None:
    """Send each tracker what it lacks."""
    for name in trackers:
        try:
            left = _SEND[name](feed)
        except ModuleNotFoundError as error:
            say(
                f"report.trackers: {name} gets nothing, it is not installed (no module {error.name}). "
                "Run .venv/bin/pip install wandb tensorboard, then report again; nothing is lost."
            )
            continue
        if left:
            say(
                f"{name} has the numbers of every iteration, but not the tables and histograms of {len(left)} of them; "
                "report --backfill sends these too"
            )


def _to_tensorboard(feed: Feed) -> list[int]:
    from dapo_stages.reporting.trackers import tensorboard_events

    return tensorboard_events.send(feed)


def _to_wandb(feed: Feed) -> list[int]:
    from dapo_stages.reporting.trackers import wandb_run

    return wandb_run.send(feed)


_SEND = {"tensorboard": _to_tensorboard, "wandb": _to_wandb}
