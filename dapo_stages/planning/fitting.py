"""Which stages fit into the memory of a rank, and what makes those fit that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dapo_stages.config import Config
from dapo_stages.planning.run_plan import GIB, Plan
from dapo_stages.planning.stage_memory import Memory, Parallel
from dapo_stages.planning.staying import memory

# Share of the memory that live bytes may take; the rest is the overhead of allocators (glibc: measured).
HEADROOM = {"cpu": 0.65, "cuda": 0.9}


def usable(plan: Plan, gibibytes: float) -> int:
    """Bytes of a rank's memory that live bytes may take."""
    return int(gibibytes * GIB * HEADROOM[plan.device])


def fitting(plan: Plan, room: int) -> dict[str, Any]:
    """Peaks of all stages, which of them fit, and for the others what could be changed."""
    peaks = memory(plan)
    return {
        "memory": {stage: _described(peak) for stage, peak in peaks.items()},
        "fits": {stage: peak.total <= room for stage, peak in peaks.items()},
        "ways": {stage: _ways(plan, stage, room) for stage, peak in peaks.items() if peak.total > room},
    }


def _described(peak: Memory) -> dict[str, Any]:
    return {"device": peak.device, "host": peak.host, "total": peak.total}


def _ways(plan: Plan, stage: str, room: int) -> dict[str, int]:
    """Changes for a stage that does not fit -> its peak with them; only those that make it fit, if any do."""
    tried = {name: memory(other)[stage].total for name, other in _others(plan, stage)}
    enough = {name: peak for name, peak in tried.items() if peak <= room}
    return enough or tried


def _others(plan: Plan, stage: str) -> list[tuple[str, Plan]]:
    smaller = {
        "rollout": ["rollout.batch_groups=1"],
        "score-attention": [f"attention.batch_completions={plan.config.rollout.num_generations}"],
        "train-step": ["train.gradient_checkpointing=true", "train.batch_completions=1", "train.logprob_chunk=256"],
        "evaluate": ["evaluate.batch_groups=1"],
    }[stage]
    found = [(" ".join(smaller), with_settings(plan, *smaller))]
    if plan.resident:
        found.append(("RESIDENT=0", replace(plan, resident=False)))
    if stage != "train-step" and not plan.resident:
        return found
    shared: list[Parallel] = ["zero2", "fsdp2", "zero3", "zero3-offload"] if plan.ranks > 1 else ["zero2-offload"]
    found += [(f"--parallel {name}", replace(plan, parallel=name)) for name in shared if name != plan.parallel]
    if plan.config.train.lora is None:
        found.append(("train.lora={rank: 16}", with_settings(plan, "train.lora={rank: 16}")))
    return found


def with_settings(plan: Plan, *settings: str) -> Plan:
    """The plan with settings such as `train.batch_completions=8`."""
    values = plan.config.model_dump(mode="json")
    for setting in settings:
        section, rest = setting.split(".", 1)
        key, value = rest.split("=", 1)
        values[section][key] = _yaml(value)
    return replace(plan, config=Config.model_validate(values))


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)
