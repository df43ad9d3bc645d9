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
_LEAST = 4.0  # seconds that a stage runs in each turn: a shorter one is run several times, and the mean taken


def measure(repetitions: int | None) -> list[Figure]:
    """Two lines for every stage: its memory, and how its seconds grow."""
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as place:
        config = SHARED | {
            "extends": str(ROOT / "pipelines/embedded.yaml"),
            "warm_up": {"steps": 0},
            "data": {"synthetic": {"train": max(PROMPTS), "held_out": max(PROMPTS)}},
            # Batches small enough that the smallest iteration has several of each kind, as the largest has: freed
            # memory is not given back at once, and it takes a few of them until no more is asked for.
            "rollout": {"dynamic_sampling": False, "max_completion_length": 16, "batch_groups": 4},
            "attention": {"batch_completions": 32},
            "train": {"batch_completions": 16},
            "evaluate": {"batch_groups": 4},
        }
        work = workspace(Path(place), config)
        work.prepare()
        ran: dict[int, list[dict[str, Ran]]] = {prompts: [] for prompts in PROMPTS}
        for turn in range(repetitions or 3):
            for prompts in PROMPTS:
                ran[prompts].append(_turn(work, f"{prompts}-{turn}", prompts))
        return [figure for stage in ran[PROMPTS[0]][0] for figure in _figures(stage, ran)]


def _turn(work: Workspace, run: str, prompts: int) -> dict[str, Ran]:
    """Every stage on so many prompts, `evaluate` on so many questions, and `report` on what they left."""
    iteration = f"{run}/iter-0001"
    calls = work.calls(iteration)
    policy = ("--policy", f"{iteration}/train/policy", "--data", "data")
    calls["evaluate"] = (*policy, "--set", f"evaluate.max_questions={prompts}", "--out", f"{iteration}/eval")
    calls["report"] = ("--run", run, "--iteration", 1)
    asked = ("--set", f"rollout.prompts_per_iteration={prompts}")
    outs = {stage: words[-1] for stage, words in calls.items()} | {"report": f"{iteration}/report"}
    return {stage: _filled(work, stage, str(outs[stage]), *words, *asked) for stage, words in calls.items()}


def _filled(work: Workspace, stage: str, out: str, *words: object) -> Ran:
    """A stage, again and again until it has run for a while: mean seconds and most memory."""
    found: list[Ran] = []
    while sum(one.seconds for one in found) < _LEAST:
        shutil.rmtree(work.folder / out, ignore_errors=True)
        found.append(work.command(stage, *words))
    return Ran(statistics.mean(one.seconds for one in found), max(one.mib or 0.0 for one in found))


def _figures(stage: str, ran: dict[int, list[dict[str, Ran]]]) -> list[Figure]:
    mib = {n: statistics.median(one[stage].mib or 0.0 for one in turns) for n, turns in ran.items()}
    seconds = {n: statistics.median(one[stage].seconds for one in turns) for n, turns in ran.items()}
    details: dict[str, Any] = {
        "resident MiB by prompts": {str(n): value for n, value in mib.items()},
        "seconds by prompts": {str(n): value for n, value in seconds.items()},
        "all seconds": {str(n): [one[stage].seconds for one in turns] for n, turns in ran.items()},
    }
    each = "questions" if stage == "evaluate" else "prompts"
    memory = Figure(
        f"memory-{stage}",
        f"peak memory of {stage}, 1024 {each}, small",
        f"the same with 64 {each}",
        mib[1024] / mib[64],
        1.1,
        "at most",
        ours_computes="8 completions of at most 16 tokens per prompt; resident memory of the whole process; "
        "micro-batches of 16 completions, 32 generated at the same time",
        details=details,
    )
    growth = Figure(
        f"growth-{stage}",
        f"growth of the seconds of {stage}, 512 → 1024 {each}, small",
        "2 × its growth from 256 to 512",
        (seconds[1024] - seconds[512]) / (2 * (seconds[512] - seconds[256])),
        1.1,
        "at most",
        ours_computes="8 completions of at most 16 tokens per prompt; wall-clock seconds of the whole process",
        details=details,
    )
    return [memory, growth]
