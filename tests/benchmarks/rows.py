"""Every row of the table by name; one is measured in a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from benchmarks.measure import Contest, Figure, Side, compare

TRL_UPDATE = "TRL GRPOTrainer's update on the same completions"
EAGER = "eager forward with output_attentions=True, reduced to the same masses"
MORE: dict[str, tuple[str, dict[str, Any]]] = {  # what attention.* adds to scoring, by the end of the line's name
    "exchanged": ("the same with images exchanged once", {"blank_image": True, "blank": "exchanged"}),
    "rollout": ("the same with attention rollout", {"rollout_mass": True}),
    "gradient": ("the same with logprobs and the gradient at the image", {"vision_gradient": True}),
}
TRL_GENERATE = "transformers generate as TRL calls it"


@runtime_checkable
class Counted(Protocol):
    """A contest that knows how many operations its work needs at least."""

    @property
    def operations(self) -> float:
        """Of one call of ours, with the prefix shared."""


@dataclass(frozen=True)
class Duel:
    """A row that times two sides in one process, and measures the peak memory of each in one of its own."""

    work: str
    against: str
    build: Callable[[], Contest]
    computes: tuple[str, str]  # ours, theirs
    target: float | None = None
    memory_target: float | None = None
    repetitions: int = 5


def duels() -> dict[str, Duel]:
    """Rows 1 to 4, by name."""
    from benchmarks import generation, preparing, scoring, scoring_more, update

    updates, scores = (update.OURS, update.THEIRS), (scoring.OURS, scoring.THEIRS)
    samples = (generation.OURS, generation.THEIRS)
    return {
        "update-medium-64": Duel(
            "update, medium, prompt 303, completion 64", TRL_UPDATE, lambda: update.medium(64), updates, 4.0
        ),
        "update-medium-192": Duel(
            "update, medium, prompt 303, completion 192", TRL_UPDATE, lambda: update.medium(192), updates, 2.5, None, 3
        ),
        "update-small": Duel("update, small (embedded default)", TRL_UPDATE, update.small, updates, 1.5),
        "scoring-medium-64": Duel(
            "scoring, medium, prompt 303, completion 64",
            EAGER,
            lambda: scoring.medium(303, (16, 16), 64),
            scores,
            5.0,
        ),
        "scoring-medium-384": Duel(
            "scoring, medium, prompt 1100, completion 384",
            EAGER,
            lambda: scoring.medium(1100, (32, 32), 384),
            scores,
            memory_target=10.0,
            repetitions=3,
        ),
        **{
            f"scoring-{name}": Duel(
                "scoring, medium, prompt 303, completion 64: masses alone",
                against,
                partial(scoring_more.Added, settings),
                (scoring.OURS, against),
                repetitions=3,
            )
            for name, (against, settings) in MORE.items()
        },
        "generation-forced": Duel(
            "generation, medium, prompt 303, 64 forced tokens", TRL_GENERATE, generation.forced, samples, 1.5, None, 3
        ),
        "generation-natural": Duel(
            "generation, medium, prompt 303, natural lengths (mean a third of 64)",
            TRL_GENERATE,
            generation.natural,
            samples,
            2.0,
        ),
        "preparing": Duel(
            f"prepare-data, {preparing.ROWS:,} rows with an image of {preparing.SIZE} pixels each",
            "the processor of transformers, row by row",
            preparing.Preparation,
            (preparing.OURS, preparing.THEIRS),
            repetitions=3,
        ),
    }


def measure_duel(name: str, duel: Duel, repetitions: int | None, peaks: dict[Side, float]) -> list[Figure]:
    """Check that both sides agree, time them by turns; a second line for memory where that has a target."""
    contest = duel.build()
    checks = contest.check()
    timed = compare(contest, repetitions or duel.repetitions)
    common: dict[str, Any] = {
        "against": duel.against,
        "ours_seconds": timed.ours,
        "theirs_seconds": timed.theirs,
        "ours_mib": peaks.get("ours"),
        "theirs_mib": peaks.get("theirs"),
        "ours_computes": duel.computes[0],
        "theirs_computes": duel.computes[1],
        "checks": checks,
        "details": dict(getattr(contest, "details", {})),
    }
    figures = [Figure(name, duel.work, value=timed.ratio, target=duel.target, **common)]
    if duel.memory_target is not None and peaks:
        less = peaks["theirs"] / peaks["ours"]
        work = f"{duel.work}: peak memory above the model"
        figures.append(Figure(f"{name}-memory", work, value=less, target=duel.memory_target, **common))
    if isinstance(contest, Counted):
        figures.append(_limit(name, duel, contest, timed.ours))
    return figures


def _limit(name: str, duel: Duel, contest: Counted, ours: list[float]) -> Figure:
    """Our seconds over those that the arithmetic alone would take at this machine's matrix-product rate."""
    from benchmarks.limits import matrix_rate

    rate = matrix_rate()
    least = contest.operations / rate
    return Figure(
        f"{name}-limit",
        duel.work,
        "the arithmetic limit: operations with a shared prefix over the measured fp32 matrix-product rate",
        statistics.median(ours) / least,
        None,
        "at most",
        ours_seconds=ours,
        details={"operations, 10⁹": contest.operations / 1e9, "matrix products, 10⁹/s": rate / 1e9, "limit s": least},
    )
