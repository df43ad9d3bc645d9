"""Row 5: memory and seconds of each stage as an iteration grows from 64 to 1024 prompts."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.iteration import SHARED
from benchmarks.measure import Figure
from benchmarks.stages import ROOT, Ran, Workspace, workspace

PROMPTS = (64, 256, 512, 1024)
GROWTH = PROMPTS[1:]
TURNS = 7
_LEAST = 4.0  # seconds that a stage runs in each turn: a shorter one is run several times


def measure(repetitions: int | None) -> list[Figure]:
    """Two lines for every stage: its memory, and how its seconds grow."""
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as place:
        config = SHARED | {
            "extends": str(ROOT / "pipelines/embedded.yaml"),
            "warm_up": {"steps": 0},
            "data": {"synthetic": {"train": max(PROMPTS), "held_out": max(PROMPTS)}},
            # Batches small enough that the smallest iteration has several of each kind, as the largest has: freed
            # memory is not given back at once, and it takes a few of them until no more is asked for.
            "rollout": {"dynamic_sampling": False, "max_completion_length": 8, "batch_groups": 4},
            "attention": {"batch_completions": 32},
            "train": {"batch_completions": 16},
            "evaluate": {"batch_groups": 4},
        }
        work = workspace(Path(place), config)
        work.prepare()
        # Sizes side by side, stage by stage: what slows the machine for minutes slows all sizes of a stage.
        found: dict[str, dict[int, list[list[Ran]]]] = {stage: {} for stage in _calls(work, PROMPTS[0])}
        for turn in range(repetitions or TURNS):
            for stage, sizes in found.items():
                for prompts in GROWTH if turn else PROMPTS:
                    sizes.setdefault(prompts, []).append(_filled(work, stage, *_calls(work, prompts)[stage]))
        return [figure for stage, sizes in found.items() for figure in _figures(stage, sizes)]


def _calls(work: Workspace, prompts: int) -> dict[str, tuple[object, ...]]:
    """Every stage on so many prompts, `evaluate` on so many questions, and `report` on what they left, in their order;
    each call's first word is its output folder."""
    iteration = f"{prompts}/iter-0001"
    policy = ("--policy", f"{iteration}/train/policy", "--data", "data")
    calls = work.calls(iteration) | {
        "evaluate": (*policy, "--set", f"evaluate.max_questions={prompts}", "--out", f"{iteration}/eval"),
        "report": ("--run", prompts, "--iteration", 1),
    }
    asked = ("--set", f"rollout.prompts_per_iteration={prompts}")
    outs = {stage: words[-1] for stage, words in calls.items()} | {"report": f"{iteration}/report"}
    return {stage: (outs[stage], *words, *asked) for stage, words in calls.items()}


def _filled(work: Workspace, stage: str, out: object, *words: object) -> list[Ran]:
    """A stage, again and again until it has run for a while."""
    found: list[Ran] = []
    while sum(one.seconds for one in found) < _LEAST:
        shutil.rmtree(work.folder / str(out), ignore_errors=True)
        found.append(work.command(stage, *words))
    return found


def _figures(stage: str, ran: dict[int, list[list[Ran]]]) -> list[Figure]:
    calls = {n: [one for turn in turns for one in turn] for n, turns in ran.items()}
    mib = {n: statistics.median(one.mib or 0.0 for one in ones) for n, ones in calls.items()}
    # The machine's speed changes over minutes by more than the growth that is looked for: each turn is compared with
    # itself, and the median is taken over the turns.
    seconds = {n: [statistics.median(one.seconds for one in turn) for turn in turns] for n, turns in ran.items()}
    growths = [
        (large - middle) / (2 * (middle - small))
        for small, middle, large in zip(*(seconds[n] for n in GROWTH), strict=True)
    ]
    details: dict[str, Any] = {
        "resident MiB by prompts": {str(n): value for n, value in mib.items()},
        "seconds by prompts": {str(n): statistics.median(values) for n, values in seconds.items()},
        "seconds by prompts, of each turn": {str(n): values for n, values in seconds.items()},
        "growth of each turn": growths,
    }
    each = "questions" if stage == "evaluate" else "prompts"
    memory = Figure(
        f"memory-{stage}",
        f"peak memory of {stage}, 1024 {each}, small",
        f"the same with 64 {each}",
        mib[1024] / mib[64],
        1.1,
        "at most",
        ours_computes="8 completions of at most 8 tokens per prompt; resident memory of the whole process; "
        "micro-batches of 16 completions, 32 generated at the same time",
        details=details,
    )
    growth = Figure(
        f"growth-{stage}",
        f"growth of the seconds of {stage}, 512 → 1024 {each}, small",
        "2 × its growth from 256 to 512",
        statistics.median(growths),
        1.1,
        "at most",
        ours_computes="8 completions of at most 8 tokens per prompt; "
        f"wall-clock seconds of the whole process; the median of {len(growths)} turns, each compared with itself",
        details=details,
    )
    return [memory, growth]
