"""Result files, one per run: what the tables of docs/results.md are made from, and nothing else."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import write_text
from dapo_stages.small_files import read_json
from pipelines.study.design import Name, shown

STAGES = ("rollout", "score-attention", "weight-tokens", "train-step")  # what a run costs; evaluation does not count
MEASURE = "violating"


class Machine(BaseModel):
    """What a run was made on, without the machine's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    processor: str
    cores: int
    threads: int
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        gpus = [f"{number} × {gpu}" for gpu, number in Counter(self.gpus).items()]
        return ", ".join([self.processor, _counted(self.cores, "core"), _counted(self.threads, "thread"), *gpus])


class Result(BaseModel):
    """What is kept of a run. Curves and seconds are by iteration, 0 being the start."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    task: str
    scheme: str
    seed: int
    pilot: bool
    learning_rate: float
    iterations: int
    evaluated: list[int] = Field(min_length=2)  # after which iterations it was planned to be evaluated
    curves: dict[str, dict[int, float]]  # accuracy: all, violating, consistent, blank, "violating, KIND"; length
    seconds: dict[str, dict[int, float]]  # by stage; of processor time, on a machine without GPUs
    memory: dict[str, int] = {}  # peak bytes by stage
    weights: dict[str, float] = {}  # what token weights were like
    start: str  # content hash of the starting policy
    data: str  # and of the questions
    machine: Machine
    versions: dict[str, str]
    commit: str
    ended: str
    broke_down: str | None = None  # why training did not come to its end
    settings: dict[str, Any]

    @model_validator(mode="after")
    def _has_its_curves(self) -> Self:
        found = sorted(self.curves.get("all", {}))
        expected = self.evaluated if self.broke_down is None else self.evaluated[: max(len(found), 1)]
        for measure in ("all", MEASURE):
            is_needed = measure == "all" or measure in self.curves
            if is_needed and sorted(self.curves.get(measure, {})) != expected:
                raise ValueError(f"curves.{measure}: expected values after iterations {expected}")
        return self

    @property
    def name(self) -> Name:
        """Which run it is."""
        return Name(self.task, self.seed, self.scheme, self.learning_rate if self.pilot else None)

    def curve(self, measure: str) -> dict[int, float]:
        """A curve at all iterations that were to be evaluated. After a breakdown the last value is carried forward."""
        known = self.curves.get(measure, {})
        found = {n: known[n] for n in sorted(known)}
        if self.broke_down is not None and found and measure != "blank":
            last = found[max(found)]
            found |= {n: last for n in self.evaluated if n > max(known)}
        return found

    def measure(self, measure: str = MEASURE) -> float:
        """Mean of a curve after the start: how fast the run learned, and how far."""
        return statistics.fmean(value for number, value in self.curve(measure).items() if number > 0)

    def at(self, measure: str, *, end: bool) -> float | None:
        """The last value of a curve, or the start's."""
        curve = self.curve(measure)
        return curve.get(max(curve) if end else 0) if curve else None

    def cost(self, iteration: int) -> float:
        """Seconds up to an iteration, without evaluation."""
        return sum(s for stage in STAGES for n, s in self.seconds.get(stage, {}).items() if n <= iteration)


def write_result(folder: Path, result: Result) -> Path:
    """Write the file of a run; the path."""
    path = folder / result.name.file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    return path


def read_results(folder: Path) -> list[Result]:
    """All result files of a folder, the pilot's too, in the order of task, seed and scheme.

    Raises DataError for a file that is damaged or has another run's name, and for a seed whose runs cannot be compared.
    """
    found = []
    for path in sorted([*folder.glob("*/*-*.json"), *folder.glob("pilot/*/*-*.json")]):
        try:
            result = Result.model_validate(read_json(path))
        except (ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(path, f"not a valid result file ({reason})", "Restore the file, or remove it.") from None
        if result.name.file != str(path.relative_to(folder)):
            raise DataError(path, f"holds the result of {result.name.file}", "Rename the file.")
        found.append(result)
    found.sort(key=lambda result: result.name)
    for seed in by_seed(found).values():
        check_comparable(folder, seed)
    return found


def measured(results: Iterable[Result]) -> str:
    """The curve that runs are measured by: all questions, if a dataset has no prior-violating ones."""
    return MEASURE if all(MEASURE in result.curves for result in results) else "all"


def by_seed(results: Iterable[Result]) -> dict[tuple[str, int, bool], list[Result]]:
    """The runs that are compared with each other: those of a task and seed, of the pilot or not."""
    found: dict[tuple[str, int, bool], list[Result]] = {}
    for result in results:
        found.setdefault((result.task, result.seed, result.pilot), []).append(result)
    return found


def check_comparable(folder: Path, results: list[Result]) -> None:
    """Raise DataError unless the runs of a seed have the start, the questions, the machine and the versions in common.

    The evaluated iterations, too, which their means are over.
    """
    first = results[0]
    for other in results[1:]:
        for what, one, two in (
            ("starting policies", first.start[:12], other.start[:12]),
            ("questions", first.data[:12], other.data[:12]),
            ("machines", str(first.machine), str(other.machine)),
            ("versions", _listed(first.versions), _listed(other.versions)),
            ("evaluations", str(first.evaluated), str(other.evaluated)),
        ):
            if one != two:
                raise DataError(
                    f"{folder}, seed {first.seed} of {first.task}",
                    f"its runs differ in their {what}: {first.name.file} has {one}, {other.name.file} has {two}",
                    "Remove all result files of this seed but those of one machine, and make the others there.",
                )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def described(result: Result) -> str:
    """Scheme, learning rate and seed in words."""
    return f"{result.scheme} at {shown(result.learning_rate)}, seed {result.seed}"
