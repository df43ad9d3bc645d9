"""The same figures for TensorBoard and Weights & Biases: each point once, however often a report is made.

All comes from the files of the run's reports, so a tracker can be switched on at any time. Each knows what it was given
before: TensorBoard's own event files, a note beside W&B's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dapo_stages.console import say
from dapo_stages.manifests import Source
from dapo_stages.reporting.figures import Figures
from dapo_stages.reporting.media import Media, load_media
from dapo_stages.reporting.runs import iteration_folder, manifest_of

Points = dict[tuple[str, int], float]  # (name, step) -> value

PER_UPDATE = "update/"  # these count optimiser steps from the start of the run, all others iterations


@dataclass(frozen=True)
class Feed:
    """What trackers are to know of a run."""

    run: Path
    project: str
    points: Points
    config: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[int, str] = field(default_factory=dict)  # iteration -> content hash of its report
    made: Collection[int] = ()  # iterations whose report was made just now
    backfill: bool = False
    media: Callable[[int], Media] = lambda iteration: Media(iteration)


class News(NamedTuple):
    """What a tracker lacks."""

    afresh: bool  # something that it has is no longer true: start again
    points: Points
    media: list[int]  # iterations whose tables, pictures and histograms to send
    left: list[int]  # those that wait for --backfill


def feed_of(
    run: Path, all_figures: Sequence[Figures], project: str, config: Mapping[str, Any],
    made: Collection[int] = (), *, backfill: bool = False,
) -> Feed:  # fmt: skip
    """The feed of a run's finished reports."""
    reports = {}
    for figures in all_figures:
        manifest = manifest_of(iteration_folder(run, figures["iteration"]) / "report", "report")
        if manifest is not None:
            reports[figures["iteration"]] = manifest.content_hash
    return Feed(run, project, points(all_figures), config, reports, made, backfill, partial(_media, run))


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


def points(all_figures: Sequence[Figures]) -> Points:
    """Every number of every iteration by name and step."""
    found: Points = {}
    step = 0
    for figures in all_figures:
        for name, value in _leaves(figures, ""):
            if name != "iteration":
                found[name, figures["iteration"]] = value
        for update in (figures.get("train") or {}).get("updates") or []:
            step += 1
            found |= {(f"{PER_UPDATE}{name}", step): value for name, value in update.items()}
    return found


def news(feed: Feed, logged: Points, sent: Mapping[int, str]) -> News:
    """What is new to a tracker that has these points, and the media of these iterations (with their reports' hash)."""
    near = 1e-6  # trackers keep float32
    wanted = feed.points
    changed = [
        key for key, old in logged.items() if key not in wanted or abs(wanted[key] - old) > near * (1 + abs(old))
    ]
    afresh = bool(changed) or any(feed.reports.get(iteration) != key for iteration, key in sent.items())
    due = feed.reports.keys() if feed.backfill else feed.reports.keys() & {*feed.made, *(sent if afresh else ())}
    lacking = feed.reports.keys() if afresh else feed.reports.keys() - sent.keys()
    new = wanted if afresh else {key: wanted[key] for key in wanted.keys() - logged.keys()}
    return News(afresh, new, sorted(due & lacking), sorted(lacking - due))


def by_step(wanted: Points, keep: Callable[[str], bool]) -> dict[int, dict[str, float]]:
    """The points whose names are to be kept, those of a step together, in order."""
    steps: dict[int, dict[str, float]] = {}
    for (name, step), value in sorted(wanted.items(), key=lambda item: (item[0][1], item[0][0])):
        if keep(name):
            steps.setdefault(step, {})[name] = value
    return steps


def _leaves(value: object, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}/{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _media(run: Path, iteration: int) -> Media:
    return load_media(run, Source(iteration_folder(run, iteration) / "report", "report"), iteration)


def _to_tensorboard(feed: Feed) -> list[int]:
    from dapo_stages.reporting import tensorboard_events

    return tensorboard_events.send(feed)


def _to_wandb(feed: Feed) -> list[int]:
    from dapo_stages.reporting import wandb_run

    return wandb_run.send(feed)


_SEND = {"tensorboard": _to_tensorboard, "wandb": _to_wandb}
