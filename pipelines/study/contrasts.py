"""Schemes against the baseline: paired by seed, over equal numbers of updates and over equal compute."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dapo_stages.maths.question_statistics import holm
from dapo_stages.maths.seed_statistics import Estimate, paired
from pipelines.study.design import Design
from pipelines.study.result_files import MEASURE, Result, by_seed


@dataclass(frozen=True)
class Contrast:
    """A scheme minus the baseline on a task, with its p value corrected by Holm if it is one of the family."""

    task: str
    scheme: str
    difference: Estimate
    corrected: float | None = None

    @property
    def verdict(self) -> str:
        """What it shows, by its interval if it is the primary one, else by its corrected p value."""
        shows = self.difference.decides if self.corrected is None else self.corrected <= 0.05
        return ("higher" if self.difference.mean > 0 else "lower") if shows else "no difference shown"


def equal_updates(design: Design, tasks: Sequence[str], results: Sequence[Result]) -> list[Contrast]:
    """All contrasts of the measure; the primary one is not corrected, the others together are."""
    found = [
        Contrast(task, scheme, difference)
        for task in tasks
        for scheme in design.others()
        if (difference := differences(results, task, scheme, design.baseline)) is not None
    ]
    secondary = {
        (one.task, one.scheme): one.difference.p
        for one in found
        if (one.task, one.scheme) != design.primary and one.difference.p is not None
    }
    corrected = dict(zip(secondary, holm(list(secondary.values())), strict=True))
    return [Contrast(one.task, one.scheme, one.difference, corrected.get((one.task, one.scheme))) for one in found]


def differences(
    results: Sequence[Result], task: str, scheme: str, baseline: str, measure: str = MEASURE
) -> Estimate | None:
    """Estimate of scheme - baseline in the measure of a curve, over the seeds that have both."""
    ours, theirs = (_values(results, task, name, lambda one: one.measure(measure)) for name in (scheme, baseline))
    return paired(ours, theirs)


def cost_ratio(results: Sequence[Result], task: str, scheme: str, baseline: str) -> float | None:
    """What a scheme's runs cost, as a multiple of the baseline's: the mean over the seeds that have both."""
    ours, theirs = (_values(results, task, name, lambda one: one.cost(one.iterations)) for name in (scheme, baseline))
    ratios = [ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys()) if theirs[seed]]
    return statistics.fmean(ratios) if ratios else None


def _values(results: Sequence[Result], task: str, scheme: str, value: Callable[[Result], float]) -> dict[int, float]:
    return {one.seed: value(one) for one in results if (one.task, one.scheme) == (task, scheme)}


def equal_compute(results: Sequence[Result], task: str, baseline: str) -> dict[str, dict[int, float]]:
    """Mean of each scheme's curve over its own cost, up to what the baseline of the seed costs: by scheme and seed."""
    found: dict[str, dict[int, float]] = {}
    for (of_task, seed, _), runs in by_seed(results).items():
        of_seed = {run.scheme: run for run in runs}
        if of_task == task and baseline in of_seed:
            budget = of_seed[baseline].cost(of_seed[baseline].iterations)
            for scheme, run in of_seed.items():
                points = [(run.cost(number), value) for number, value in run.curve(MEASURE).items()]
                found.setdefault(scheme, {})[seed] = mean_up_to(points, budget)
    return found


def mean_up_to(points: Sequence[tuple[float, float]], budget: float) -> float:
    """Mean over 0 … budget of the piecewise linear curve through points (cost, value), the first at cost 0.

    Beyond its last point the curve keeps the last value.
    """
    points = sorted(points)
    points = [*points, (max(budget, points[-1][0]), points[-1][1])]
    area = 0.0
    for (left, first), (right, second) in pairwise(points):
        end = min(right, budget)
        if end > left:
            last = first + (second - first) * (end - left) / (right - left)
            area += (end - left) * (first + last) / 2
    return area / budget
