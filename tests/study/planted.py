"""Result files made by hand, of a study of four schemes on one task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.study.design import Design
from pipelines.study.result_files import Result, write_result

DESIGN = Design(
    tasks=("places",),
    pilot_seeds=(1, 2),
    first_test_seed=101,
    rates=(0.0001, 0.0003, 0.001),
    baseline="uniform",
    primary=("places", "a"),
    schemes={"uniform": {}, "a": {}, "b": {}, "c": {}},
    own_schemes=("uniform", "a"),
    own_seeds=(1, 2, 3),
)
SEEDS = tuple(range(101, 111))
# Differences from uniform by seed.
# a: mean .11, squares .069, deviation √(.069 / 9) = .08756, half 2.2622 · .08756 / √10 = .06264: [+.047, +.173].
A = (0.1, 0.2, 0.0, 0.1, 0.2, 0.0, 0.1, 0.2, 0.0, 0.2)
B = (0.05, -0.05) * 5  # mean 0
# c: mean .1, deviation .106345 · √(10 / 9), so t = .1 / (.106345 / 3) = 2.821, the published 0.99 quantile: p = .02.
C = (0.1 + 0.106345, 0.1 - 0.106345) * 5


def result(scheme: str, seed: int, measure: float, **changes: Any) -> Result:
    """A run whose measure is that: two evaluations after the start, .1 below and above it."""
    values: dict[str, Any] = {
        "task": "places",
        "scheme": scheme,
        "seed": seed,
        "pilot": False,
        "learning_rate": 0.0003,
        "iterations": 8,
        "evaluated": [0, 4, 8],
        "curves": {
            "violating": {0: 0.1, 4: measure - 0.1, 8: measure + 0.1},
            "violating, count": {0: 0.0, 4: measure, 8: measure},
            "all": {0: 0.3, 4: measure, 8: measure},
            "blank": {0: 0.25, 8: 0.29},
            "length": {0: 14.0, 4: 15.0, 8: 16.0},
        },
        "seconds": {"rollout": dict.fromkeys(range(1, 9), 2.0), "train-step": dict.fromkeys(range(1, 9), 3.0)},
        "start": f"start of {seed}",
        "data": f"questions of {seed}",
        "machine": {"processor": "Abacus", "cores": 2, "threads": 1, "gpus": []},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "commit": "0123abc",
        "ended": "2026-12-01T00:00:00+00:00",
        "settings": {},
    }
    return Result.model_validate(values | changes)


def every_run() -> list[Result]:
    """All runs of the ten test seeds."""
    found = []
    for seed, a, b, c in zip(SEEDS, A, B, C, strict=True):
        for scheme, difference in (("uniform", 0.0), ("a", a), ("b", b), ("c", c)):
            found.append(result(scheme, seed, 0.5 + difference))
    return found


def pilot(changed: dict[tuple[str, float], float] | None = None) -> list[Result]:
    """All runs of the pilot at the three learning rates, of which 0.0003 is best, but for changed measures.

    Differences from uniform there: a .10 and .12, b 0 and .04, c none: squares .0002 + .0008, three degrees of freedom.
    """
    found = []
    for scheme, differences in {"uniform": (0.0, 0.0), "a": (0.1, 0.12), "b": (0.0, 0.04), "c": (0.0, 0.0)}.items():
        for rate in (0.0001, 0.0003, 0.001):
            for seed, difference in zip((1, 2), differences, strict=True):
                measure = (changed or {}).get((scheme, rate), 0.5 if rate == 0.0003 else 0.4)
                found.append(result(scheme, seed, measure + difference, pilot=True, learning_rate=rate))
    return found


def plant(folder: Path, results: list[Result]) -> Path:
    """Write their files."""
    for one in results:
        write_result(folder, one)
    return folder
