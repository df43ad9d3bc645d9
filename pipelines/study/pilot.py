"""What the pilot decides: the learning rate of each scheme, the smallest effect to be seen, how many test seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.study.design import Design, Name, next_rate
from pipelines.study.result_files import Result

# By number of seeds: the mean difference, in standard deviations of the differences, that a two-sided paired t-test at
# 0.05 finds with 80% probability (noncentral t; docs/study.md).
DETECTED = {10: 1.00, 15: 0.78, 20: 0.66}
WANTED = 0.05  # the effect that should be seen


@dataclass(frozen=True)
class Tried:
    """The learning rates that were tried for a scheme, with the measure averaged over the pilot's seeds."""

    measures: dict[float, float]  # by rate, in the order of rates; without those that not all seeds have tried
    missing: tuple[Name, ...]  # runs that are still needed to choose
    broke_down: tuple[float, ...]

    @property
    def best(self) -> float | None:
        """The rate with the highest measure, the lower one of two that are equal; None while runs are missing."""
        return None if self.missing else max(self.measures, key=lambda rate: self.measures[rate])


class Pilot:
    """The pilot of one task."""

    def __init__(self, design: Design, task: str, results: Sequence[Result]) -> None:
        runs = {result.name: result for result in results if result.pilot and result.task == task}
        self._design, self._runs, self.task = design, runs, task
        self.tried = {scheme: self._tried(scheme) for scheme in design.schemes}

    def _tried(self, scheme: str) -> Tried:
        rates = list(self._design.rates)
        while True:
            names = {rate: [Name(self.task, seed, scheme, rate) for seed in self._design.pilot_seeds] for rate in rates}
            missing = tuple(name for rate in rates for name in names[rate] if name not in self._runs)
            known = {rate: [self._runs[name] for name in names[rate] if name in self._runs] for rate in sorted(rates)}
            full = {rate: runs for rate, runs in known.items() if len(runs) == len(self._design.pilot_seeds)}
            measures = {rate: statistics.fmean(run.measure() for run in runs) for rate, runs in full.items()}
            tried = Tried(measures, missing, tuple(r for r, runs in known.items() if any(o.broke_down for o in runs)))
            further = None if tried.best is None else next_rate(rates, tried.best)
            if further is None:
                return tried
            rates.append(further)

    @property
    def missing(self) -> list[Name]:
        """The runs that the pilot still needs, as far as is known now: one at an edge asks for another rate."""
        return sorted(name for tried in self.tried.values() for name in tried.missing)

    @property
    def spread(self) -> tuple[float, int] | None:
        """Standard deviation of the paired differences from the baseline, pooled over the schemes at their chosen
        rates, and its degrees of freedom; None while runs are missing."""
        if self.missing:
            return None
        squares, freedom = 0.0, 0
        for scheme in self._design.others():
            ours, theirs = (self._chosen(name) for name in (scheme, self._design.baseline))
            differences = [one.measure() - other.measure() for one, other in zip(ours, theirs, strict=True)]
            mean = statistics.fmean(differences)
            squares += math.fsum((difference - mean) ** 2 for difference in differences)
            freedom += len(differences) - 1
        return math.sqrt(squares / freedom), freedom

    def _chosen(self, scheme: str) -> list[Result]:
        best = self.tried[scheme].best
        return [self._runs[Name(self.task, seed, scheme, best)] for seed in self._design.pilot_seeds]

    @property
    def seeds(self) -> int | None:
        """Number of test seeds: the smallest that shows an effect of `WANTED`, or else the largest."""
        if self.spread is None:
            return None
        enough = [number for number, factor in DETECTED.items() if factor * self.spread[0] <= WANTED]
        return min(enough, default=max(DETECTED))
