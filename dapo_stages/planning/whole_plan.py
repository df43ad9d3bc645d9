"""Everything that plan shows, as numbers: each stage by itself, and in processes that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dapo_stages.planning.beside import beside
from dapo_stages.planning.fitting import fitting, usable
from dapo_stages.planning.micro_batches import settled
from dapo_stages.planning.run_plan import Plan
from dapo_stages.planning.stage_times import behind, outside, seconds_of, total


def answer(plan: Plan, name: str, memory: float, image_bytes: int) -> dict[str, Any]:
    """The answer for a model of that name on ranks with so many GiB."""
    room, files = usable(plan, memory), plan.files(image_bytes)
    plan = settled(plan, room)
    by_itself = _way(plan, room)
    peaks, seconds = by_itself["memory"], by_itself["seconds"]
    slowest = max(seconds, key=lambda stage: sum(seconds[stage].values()))
    return {
        "model": name,
        "parameters": plan.d.parameters,
        "trained": plan.trained[0],
        "parallel": plan.parallel,
        "ranks": plan.ranks,
        "group": {
            "prompt": plan.work.prompt,
            "vision": plan.work.patches // plan.d.tower.merge,
            "completion": plan.work.completion,
            "completions": plan.work.count,
        },
        "usable": room,
        "sampled": plan.sampled,
        **by_itself,
        "resident": _way(replace(plan, resident=plan.nodes == 1), room),  # launches on several machines do not stay
        "beside": beside(plan, memory, room),
        "bytes": files,
        "kept": plan.on_disk(files),
        "room": plan.room(memory),
        "fullest": max(peaks, key=lambda stage: peaks[stage]["total"]),
        "slowest": slowest,
        "slowest_part": max(seconds[slowest], key=lambda part: seconds[slowest][part]),
    }


def _way(plan: Plan, room: int) -> dict[str, Any]:
    """Memory and time of one way of running the stages. `work`: the share of an iteration that is work; `behind`:
    seconds of writing while other stages run."""
    seconds = seconds_of(plan)
    iteration = total(seconds)
    work = iteration - sum(outside(parts) for parts in seconds.values())
    return {
        **fitting(plan, room),
        "seconds": seconds,
        "iteration": iteration,
        "work": work / iteration,
        "behind": behind(plan),
    }
