"""Simulates replay with both rules: draws the curves of docs/sampling.md and prints its table (`make docs`).

The rewards are made up; which groups are stored, drawn and replaced is decided by the functions of weight-tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np

from dapo_stages.config import ReplayConfig
from dapo_stages.handoff.shards import write_text
from dapo_stages.maths.replay import RULES, Entry, admissible, draw, drawn_again, rated, update
from dapo_stages.reporting.page.charts import Chart, Series, drawn_as_svg
from dapo_stages.terminal.safe_text import markdown_table

HERE = Path(__file__).parent
GROUPS, COMPLETIONS, RIGHT, FORMAT = 64, 8, 2.5, 0.5
ITERATIONS, SETTLED, SEED = 60, 20, 0  # figures are over the iterations after 20, when the buffer is full
DATA: dict[str, Callable[[np.random.Generator], float]] = {
    "even": lambda rng: rng.uniform(),
    "hard": lambda rng: rng.beta(1, 3),
}
SETTINGS = {"replace_all": ReplayConfig(rule="replace_all", max_replays=None), "better": ReplayConfig()}
MEASURES = {
    "share": "share of replayed groups among those trained on",
    "age": "iterations since replayed groups were sampled",
    "times": "times that a group is replayed",
    "score": "score of the groups trained on",
    "gone": "score of the groups that were replaced",
}


@dataclass(frozen=True)
class Iteration:
    """The groups that are trained on, and the fresh ones that were replaced."""

    number: int
    fresh: list[Entry]
    replayed: list[Entry]
    replaced: list[Entry]

    @property
    def share(self) -> float:
        return len(self.replayed) / (len(self.replayed) + len(self.fresh))

    @property
    def score(self) -> float:
        return mean(group.score for group in self.replayed + self.fresh)


def main() -> None:
    """Write the charts, print the table."""
    runs = {(data, rule): simulate(data, rule) for data in DATA for rule in SETTINGS}
    for name in ("share", "score"):
        curves = [
            Series(f"{data}, {rule}", [(found.number, getattr(found, name)) for found in run])
            for (data, rule), run in runs.items()
        ]
        unit: Literal["number", "percent"] = "percent" if name == "share" else "number"
        label = "replayed groups" if name == "share" else "mean score"
        write_text(HERE / f"replay-{name}.svg", drawn_as_svg(Chart(MEASURES[name], label, curves, unit)))
    print(table(runs))


def simulate(data: str, rule: str) -> list[Iteration]:
    """A run that samples informative groups with these success rates, which do not change over the iterations."""
    settings, rng = SETTINGS[rule], np.random.default_rng(SEED)
    stored: list[Entry] = []
    found = []
    for number in range(1, ITERATIONS + 1):
        fresh = [next(informative(DATA[data], rng, number, place)) for place in range(GROUPS)]
        exchange = RULES[rule](fresh, stored, GROUPS, settings.var_epsilon, settings.min_reward)
        replayed, _ = draw(exchange.candidates, exchange.count, rng, settings.priority_alpha)
        replaced = exchange.leaving[: len(replayed)]
        found.append(Iteration(number, [group for group in fresh if group not in replaced], replayed, replaced))
        entering = [
            group
            for group in fresh
            if admissible(group.mean_reward, group.std_reward, settings.var_epsilon, settings.min_reward)
        ]
        stored = drawn_again(stored, {group.group_id for group in replayed})
        stored = update(stored, entering, settings.size, settings.max_staleness, number, settings.max_replays)
    return found


def informative(
    rate: Callable[[np.random.Generator], float], rng: np.random.Generator, number: int, place: int
) -> Iterator[Entry]:
    """Groups with some but not all completions right, like those that dynamic sampling keeps."""
    while True:
        right = rng.binomial(COMPLETIONS, rate(rng))
        if 0 < right < COMPLETIONS:
            rewards = FORMAT + RIGHT * (np.arange(COMPLETIONS) < right).astype(np.float64)
            yield rated(f"{number}-{place:02d}", number, rewards)


def figures(run: list[Iteration]) -> dict[str, float]:
    """Means over the iterations in which the buffer is full."""
    late = [found for found in run if found.number > SETTLED]
    times = Counter(group.group_id for found in late for group in found.replayed)
    return {
        "share": mean(found.share for found in late),
        "age": mean(found.number - group.iteration for found in late for group in found.replayed),
        "times": mean(times.values()),
        "score": mean(found.score for found in late),
        "gone": mean(group.score for found in late for group in found.replaced),
    }


def table(runs: dict[tuple[str, str], list[Iteration]]) -> str:
    """The figures of all runs."""
    found = [figures(run) for run in runs.values()]
    rows = [
        [text, *(f"{each[name]:{'.0%' if name == 'share' else '.1f'}}" for each in found)]
        for name, text in MEASURES.items()
    ]
    return markdown_table(["", *(f"{data}, {rule}" for data, rule in runs)], rows)


if __name__ == "__main__":
    main()
