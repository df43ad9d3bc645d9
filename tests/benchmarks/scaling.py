"""Row 5: memory and seconds of each stage as an iteration grows from 64 to 1024 prompts."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.iteration import SHARED
from benchmarks.measure import Figure
from benchmarks.stages import ROOT, STAGES, Ran, workspace

PROMPTS = (64, 256, 512, 1024)


def measure(repetitions: int | None) -> list[Figure]:
    """Two lines for every stage: its memory, and how its seconds grow."""
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as place:
        config = SHARED | {
            "extends": str(ROOT / "pipelines/embedded.yaml"),
            "warm_up": {"steps": 0},
            "data": {"synthetic": {"train": max(PROMPTS), "held_out": 8}},
            "rollout": {"dynamic_sampling": False, "max_completion_length": 16},
            "train": {"batch_completions": 64},  # a micro-batch that the smallest iteration fills as well
        }
        work = workspace(Path(place), config)
        work.prepare()
        ran: dict[int, list[dict[str, Ran]]] = {prompts: [] for prompts in PROMPTS}
        for turn in range(repetitions or 2):
            for prompts in PROMPTS:
                setting = f"rollout.prompts_per_iteration={prompts}"
                ran[prompts].append(work.iterate(f"{prompts}-{turn}", setting))
        return [figure for stage in STAGES for figure in _figures(stage, ran)]


def _figures(stage: str, ran: dict[int, list[dict[str, Ran]]]) -> list[Figure]:
    mib = {n: statistics.median(one[stage].mib or 0.0 for one in turns) for n, turns in ran.items()}
    seconds = {n: statistics.median(one[stage].seconds for one in turns) for n, turns in ran.items()}
    details: dict[str, Any] = {
        "resident MiB by prompts": {str(n): value for n, value in mib.items()},
        "seconds by prompts": {str(n): value for n, value in seconds.items()},
        "all seconds": {str(n): [one[stage].seconds for one in turns] for n, turns in ran.items()},
    }
    memory = Figure(
        f"memory-{stage}",
        f"peak memory of {stage}, 1024 prompts, small",
        "the same with 64 prompts",
        mib[1024] / mib[64],
        1.1,
        "at most",
        ours_computes="8 completions of at most 16 tokens per prompt; resident memory of the whole process",
        details=details,
    )
    growth = Figure(
        f"growth-{stage}",
        f"growth of the seconds of {stage}, 512 → 1024 prompts, small",
        "2 × its growth from 256 to 512",
        (seconds[1024] - seconds[512]) / (2 * (seconds[512] - seconds[256])),
        1.1,
        "at most",
        ours_computes="8 completions of at most 16 tokens per prompt; wall-clock seconds of the whole process",
        details=details,
    )
    return [memory, growth]
