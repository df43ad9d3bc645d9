"""Send figures to TensorBoard and Weights & Biases: each point once, however often a report is made.

Everything comes from the files of the run's reports, so a tracker can be enabled at any time. What it has been sent
is recorded next to its files, iteration by iteration, so that old points need not be compared one by one.
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
                f"report.trackers: cannot send to {name}, which is not installed (no module {error.name}). "
                "Run .venv/bin/pip install wandb tensorboard, then report again; nothing is lost."
            )
            continue
        if left:
            say(
                f"{name} has the numbers of every iteration, but not the tables and histograms of {len(left)} of them; "
                "run report --backfill to send these too"
            )


def _to_tensorboard(feed: Feed) -> list[int]:
    from dapo_stages.reporting.trackers import tensorboard_events

    return tensorboard_events.send(feed)


def _to_wandb(feed: Feed) -> list[int]:
    from dapo_stages.reporting.trackers import wandb_run

    return wandb_run.send(feed)


_SEND = {"tensorboard": _to_tensorboard, "wandb": _to_wandb}
