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
        found: dict[str, dict[int, list[Ran]]] = {stage: {} for stage in _calls(work, PROMPTS[0])}
        for turn in range(repetitions or TURNS):
            for stage, sizes in found.items():
                for prompts in GROWTH if turn else PROMPTS:
                    sizes.setdefault(prompts, []).extend(_filled(work, stage, *_calls(work, prompts)[stage]))
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


def _figures(stage: str, ran: dict[int, list[Ran]]) -> list[Figure]:
    mib = {n: statistics.median(one.mib or 0.0 for one in calls) for n, calls in ran.items()}
    # A ratio of differences: what disturbs a call only ever adds to it, and a tenth more in one size would be half of
    # the figure. Hence the least disturbed call of each size, as timeit has it; the medians are in the details.
    seconds = {n: min(one.seconds for one in calls) for n, calls in ran.items()}
    medians = {n: statistics.median(one.seconds for one in calls) for n, calls in ran.items()}
    details: dict[str, Any] = {
        "resident MiB by prompts": {str(n): value for n, value in mib.items()},
        "least seconds by prompts": {str(n): value for n, value in seconds.items()},
        "growth of the medians": _growth(medians),
        "all seconds": {str(n): [one.seconds for one in calls] for n, calls in ran.items()},
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
        _growth(seconds),
        1.1,
        "at most",
        ours_computes="8 completions of at most 8 tokens per prompt; "
        f"wall-clock seconds of the whole process, the least of {len(ran[1024])} calls",
        details=details,
    )
    return [memory, growth]


def _growth(seconds: dict[int, float]) -> float:
    """1: linear in the number of prompts, whatever a call costs at all; 2: quadratic."""
    return (seconds[1024] - seconds[512]) / (2 * (seconds[512] - seconds[256]))
