"""What a tracker gets: values and media of a run, by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dapo_stages.reporting.iteration.figures import Figures
from dapo_stages.reporting.trackers.media import Media, load_media

if TYPE_CHECKING:
    from dapo_stages.reporting.run_report import Reported


Points = dict[tuple[str, int], float]  # (name, step) -> value
PER_UPDATE = "update/"  # by optimizer step since the start of the run; all others are by iteration


@dataclass(frozen=True)
class Feed:
    """What trackers get of a run."""

    run: Path
    project: str
    figures: Sequence[Figures]
    keys: Mapping[int, str]  # iteration -> hash of its figures
    config: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[int, str] = field(default_factory=dict)  # iteration -> content hash of its report
    made: Collection[int] = ()  # iterations whose report was made just now
    backfill: bool = False
    media: Callable[[int], Media] = lambda iteration: Media(iteration)

    def points(self, iterations: Collection[int] | None = None) -> Points:
        """Every number of these iterations (else of all) by name and step."""
        found: Points = {}
        for figures, step in self._steps():
            number = figures["iteration"]
            if iterations is None or number in iterations:
                found |= {(name, number): value for name, value in _leaves(figures, "") if name != "iteration"}
                for index, update in enumerate(_updates(figures), step + 1):
                    found |= {(f"{PER_UPDATE}{name}", index): value for name, value in update.items()}
        return found

    def told(self) -> dict[int, str]:
        """A key for the points of each iteration: the hash of its figures, and the optimizer steps before it."""
        return {figures["iteration"]: f"{self.keys[figures['iteration']]} {step}" for figures, step in self._steps()}

    def _steps(self) -> Iterator[tuple[Figures, int]]:
        step = 0
        for figures in self.figures:
            yield figures, step
            step += len(_updates(figures))


class News(NamedTuple):
    """What a tracker lacks."""

    afresh: bool  # something that it has is no longer right: start over
    points: Points
    media: list[int]  # iterations whose tables, images and histograms to send
    left: list[int]  # those that are only sent with --backfill


def feed_of(
    reported: Reported, project: str, config: Mapping[str, Any], made: Collection[int] = (), *, backfill: bool = False
) -> Feed:
    """The feed of a run's finished reports."""
    reports, keys = reported.hashes()
    media = partial(load_media, reported.run)
    return Feed(reported.run.path, project, reported.figures, keys, config, reports, made, backfill, media)


def news(feed: Feed, logged: Points, sent: Mapping[int, str], only: Collection[int] | None = None) -> News:
    """What a tracker lacks if it has the points `logged`, and the media of `sent` (iteration -> hash of its report).

    `only`: the iterations whose points it lacks; it has those of all others.
    """
    near = 1e-6  # trackers keep float32
    wanted = feed.points(only)
    changed = [
        key for key, old in logged.items() if key not in wanted or abs(wanted[key] - old) > near * (1 + abs(old))
    ]
    afresh = bool(changed) or any(feed.reports.get(iteration) != key for iteration, key in sent.items())
    due = feed.reports.keys() if feed.backfill else feed.reports.keys() & {*feed.made, *(sent if afresh else ())}
    missing = feed.reports.keys() if afresh else feed.reports.keys() - sent.keys()
    new = feed.points() if afresh else {key: wanted[key] for key in wanted.keys() - logged.keys()}
    return News(afresh, new, sorted(due & missing), sorted(missing - due))


def by_step(wanted: Points, keep: Callable[[str], bool]) -> dict[int, dict[str, float]]:
    """The points whose names pass `keep`, grouped by step, in order."""
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


def _updates(figures: Figures) -> Sequence[Mapping[str, float]]:
    return (figures.get("train") or {}).get("updates") or []


def lacking(feed: Feed, noted: Mapping[int, str]) -> set[int] | None:
    """The iterations whose points are not recorded yet; None if some recorded ones have changed."""
    told = feed.told()
    same = all(told.get(iteration) == key for iteration, key in noted.items())
    return told.keys() - noted.keys() if same else None
