"""Processes that stay (docs/resident.md): which stages they run, which of these still read a policy, and what is held
while others run."""

from __future__ import annotations

from dapo_stages.planning.run_plan import Plan
from dapo_stages.planning.stage_memory import Memory


def opens(plan: Plan, stage: str) -> bool:
    """Whether a stage opens a policy; one with a server leaves that to it."""
    config = plan.config
    return {
        "rollout": config.rollout.engine != "server",
        "score-attention": config.attention.enabled,
        "train-step": True,
        "evaluate": plan.questions > 0 and config.evaluate.engine != "server",
    }[stage]


def with_vllm(plan: Plan, stage: str) -> bool:
    """Whether vLLM runs in the process of a stage; where processes stay, it has one of its own."""
    config = plan.config
    return {"rollout": config.rollout.engine, "evaluate": config.evaluate.engine}.get(stage) == "vllm"


def readers(plan: Plan) -> list[str]:
    """Stages that read the files of a policy in an iteration, once the first ones are over.

    A process keeps the policy that it used last, or the one that it has trained.
    """
    found: list[str] = []
    kept: int | None = None  # number of the train-step that made the policy
    in_vllm: int | None = None
    for iteration in (0, 1):  # the second one finds what the first has left
        found.clear()
        sampler = iteration - plan.config.lag
        uses = {"rollout": sampler, "score-attention": sampler, "train-step": iteration, "evaluate": iteration + 1}
        for stage, wanted in uses.items():
            if not opens(plan, stage):
                continue
            if not plan.resident or (stage == "train-step" and _launched(plan)):  # the other launch keeps its own
                found.append(stage)
                continue
            if with_vllm(plan, stage):
                found += [stage] if in_vllm != wanted else []
                in_vllm = wanted
                continue
            if kept != wanted or (stage == "train-step" and plan.config.train.lora is not None):
                found.append(stage)
            kept = wanted
            if stage == "train-step":
                kept = iteration + 1 if _keeps_trained(plan) else None
    return found


def memory(plan: Plan) -> dict[str, Memory]:
    """Peak of each stage, with what other processes, or this one, hold for other stages."""
    peaks = plan.memory()
    if not plan.resident:
        return peaks
    held = _launches(plan) if _launched(plan) else _worker(plan)
    on_host = {stage: _on_host(plan) if _launched(plan) and stage != "train-step" else {} for stage in peaks}
    if plan.device == "cpu":  # device and host are one memory
        held, on_host = {stage: held[stage] | on_host[stage] for stage in peaks}, {stage: {} for stage in peaks}
    if any(with_vllm(plan, stage) for stage in peaks):  # its weights wait in host memory
        asleep = {"vLLM asleep": sum(plan.process.values())}
        held = {stage: beside | ({} if with_vllm(plan, stage) else asleep) for stage, beside in held.items()}
    return {stage: Memory(peak.device | held[stage], peak.host | on_host[stage]) for stage, peak in peaks.items()}


def _worker(plan: Plan) -> dict[str, dict[str, int]]:
    """One process: moments and exact weights wait for the next train-step, the reference for its next use."""
    reference = {"kept reference": plan.weights} if plan.refers else {}
    state = {"kept optimizer state": plan.files(0)["train-step: state"], **reference}
    return {stage: reference if stage == "train-step" else state for stage in plan.memory()}


def _launches(plan: Plan) -> dict[str, dict[str, int]]:
    """Two launches, one that trains and one for the other stages. Each gives back what it doesn't keep."""
    reference, process = plan.weights if plan.refers else 0, sum(plan.process.values())
    lets_go = plan.config.attention.enabled and plan.config.lag == 0  # score-attention, of what is trained next
    trains, samples = reference + process, process + (0 if lets_go else plan.weights)
    found = {stage: {"launch that trains": trains} for stage in plan.memory()}
    kept = {"kept reference": reference} if reference else {}
    return {**found, "train-step": {"launch that samples": samples, **kept}}


def _on_host(plan: Plan) -> dict[str, int]:
    """What a rank that trains keeps in host memory meanwhile: its part of the state, and until that is written its
    share of whole tensors. Where every rank holds all of it, the share is some of it."""
    state = plan.files(0)["train-step: state"]
    if plan.parallel == "ddp":
        return {"kept optimizer state": state}
    share = -(-state // plan.ranks)
    return {"kept optimizer state": share, "its share to be written": share}


def _launched(plan: Plan) -> bool:
    return plan.parallel != "single"


def _keeps_trained(plan: Plan) -> bool:
    """Whether the policy after training is kept (models/kept_policies.py)."""
    model = plan.config.model
    return plan.config.train.lora is None and model.quantization is None and not model.compile
