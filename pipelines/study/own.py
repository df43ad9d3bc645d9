"""How long the study takes for a model of one's own, by the formulas of `dapo-stages plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dapo_stages.config import load_config
from dapo_stages.errors import DataError
from dapo_stages.terminal.safe_text import markdown_table
from pipelines.study.design import Design, overrides

GPUS = (1, 4, 8)


def hours(design: Design, config: str, model: str, every: int, seeds: int = 0) -> str:
    """A table of hours by scheme and number of GPUs, for all seeds, and what is assumed.

    Raises DataError if the configuration rewards looking, which only schemes that measure attention could.
    """
    seeds = seeds or len(design.own_seeds)
    settings = load_config(Path(config), [f"model.name={model}"])
    if settings.weights.reward_weights.vgr or settings.weights.early_reward_weights.vgr:
        raise DataError(config, "rewards VGR, which not every scheme measures", "Set weights.reward_weights.vgr to 0.")
    iterations = settings.planned_iterations
    evaluations = 1 + -(-iterations // every)
    rows, totals = [], dict.fromkeys(GPUS, 0.0)
    for scheme in design.own_schemes:
        cells = []
        for gpus in GPUS:
            seconds = _seconds(config, model, overrides(design.schemes[scheme]), gpus)
            evaluation = sum(seconds.pop("evaluate").values())
            run = iterations * sum(sum(parts.values()) for parts in seconds.values()) + evaluations * evaluation
            totals[gpus] += run * seeds
            cells.append(f"{run * seeds / 3600:.1f}")
        rows.append([scheme, *cells])
    rows.append(["all", *(f"{totals[gpus] / 3600:.1f}" for gpus in GPUS)])
    headers = [f"{seeds} seeds", *(f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in GPUS)]
    return (
        f"Estimated hours for {model} ({iterations} iterations, {evaluations} evaluations; dapo-stages plan, H100 with "
        f"80 GB; docs/sizing.md says what is assumed):\n\n{markdown_table(headers, rows)}"
    )


def _seconds(config: str, model: str, settings: list[str], gpus: int) -> dict[str, dict[str, float]]:
    """Seconds of the stages of an iteration, in processes that stay, by part."""
    command = [sys.executable, "-m", "dapo_stages", "plan", "--config", config, "--model", model, "--gpus", str(gpus)]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise DataError("plan", done.stderr.strip(), "Correct CONFIG or MODEL.")
    found: dict[str, dict[str, float]] = json.loads(done.stdout)["resident"]["seconds"]
    return found
