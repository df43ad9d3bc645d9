"""Estimated seconds of each stage of an iteration, by part. Formulas: docs/sizing.md."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from dapo_stages.planning import stage_costs
from dapo_stages.planning.run_plan import Plan, Seconds

# Until a process has imported what it needs: measured for CPUs; assumed for CUDA, with contexts and libraries.
START = {"cpu": 3.0, "cuda": 20.0}
WITHOUT_MODEL = 1.0  # the same without torch, measured
LAUNCH = 10.0  # in addition for several processes, assumed: the launcher's imports, and connecting the processes
START_VLLM = 60.0  # until it takes requests, assumed


def seconds_of(plan: Plan) -> Seconds:
    """Seconds of each stage on its slowest rank; neither stages nor parts overlap."""
    start = START[plan.device] + (LAUNCH if plan.ranks > 1 else 0)
    light = {"start-up": WITHOUT_MODEL}
    return {
        "rollout": _rollout(plan, start),
        "score-attention": {"start-up": start, **_scoring(plan)},
        "weight-tokens": light,
        "train-step": {"start-up": start, **_training(plan)},
        "evaluate": {"start-up": start, **_opening(plan), "generation": _evaluating(plan)},
        "report": light,
    }


def _opening(plan: Plan) -> dict[str, float]:
    """Every rank hashes the policy, then reads it; an adapter's base, which init-policy refers to, is not hashed."""
    written = plan.files(0)["train-step: policy"]
    base = plan.d.parameters * plan.b if plan.config.train.lora is not None else 0  # quantized on reading
    return {"verifying": plan.rates.verifying(written), "loading": plan.rates.loading(base + written)}


def _rollout(plan: Plan, start: float) -> dict[str, float]:
    """The shards of the busiest rank; a server is already running."""
    engine, size = plan.config.rollout.engine, ceil(plan.shard)
    batch = min(size, plan.config.rollout.batch_groups) if engine == "transformers" else size
    batches = ceil(plan.shards[0] / plan.ranks) * ceil(size / batch)
    found = {"start-up": start + (START_VLLM if engine == "vllm" else 0)}
    if engine != "server":
        found |= _opening(plan)
    return found | {"generation": batches * _generated(plan, plan.work.count, batch, engine == "transformers")}


def _generated(plan: Plan, count: int, groups: int, ours: bool = True) -> float:
    """Seconds to generate a batch."""
    work, called = replace(plan.work, count=count), ours and not plan.config.model.compile
    return stage_costs.decoding(plan.d, work, groups, plan.b, plan.rates, called=called)


def _scoring(plan: Plan) -> dict[str, float]:
    """The shards of the busiest rank, with only those groups that are scored."""
    settings, shards = plan.config.attention, plan.shards[1]
    if not settings.enabled:
        return {}
    scored = plan.kept if settings.groups == "kept" else plan.sampled
    operations = stage_costs.scoring(plan.d, plan.work, plan.passes)
    groups = ceil(shards / plan.ranks) * scored / shards
    return _opening(plan) | {"forward": groups * operations / plan.rates.operations}


def _training(plan: Plan) -> dict[str, float]:
    """One process per machine hashes the state, and each rank reads, writes and hashes its share; DDP's read all."""
    train, rates, files = plan.config.train, plan.rates, plan.files(0)
    updates, state = train.updates_per_iteration, files["train-step: state"]
    opening = _opening(plan)
    operations = stage_costs.update(plan.d, plan.work, checkpointing=train.gradient_checkpointing, updates=updates)
    if plan.refers:  # the reference is opened and run as well
        opening = {name: 2 * seconds for name, seconds in opening.items()}
        operations += stage_costs.forward(plan.d, plan.work, logits=True)
    sent = 0.0
    if plan.ranks > 1:
        passes = plan.micro_batches * (1 - 1 / updates)
        sent = updates * stage_costs.traffic(
            plan.parallel, plan.trained[0], plan.d.parameters, plan.micro_batches, passes, plan.ranks, plan.b
        ) + stage_costs.state_traffic(plan.parallel, state, plan.ranks)
    shares = 1 if plan.parallel in ("single", "ddp") else plan.ranks
    moved = files.get("train-step: reference", 0) / (train.reference_update_every or 1)
    policy = files["train-step: policy"] + moved  # written by rank 0
    return {
        "verifying": opening["verifying"] + rates.verifying(state),
        "loading": opening["loading"] + max(rates.loading(state / shares), state / rates.disk),
        "updates": plan.groups * operations / rates.operations,
        "between ranks": sent / rates.link,
        "writing": (policy + state) / rates.disk,
        "hashing": (policy + state / plan.ranks) / rates.hashed,
    }


def _evaluating(plan: Plan) -> float:
    """Greedy completions, samples, and greedy completions for blanked images, a batch of questions at a time."""
    settings = plan.config.evaluate
    size = min(plan.questions, settings.questions_per_shard)
    if not size:
        return 0.0
    batch = min(size, settings.batch_groups)
    counts = [1] * settings.greedy + [settings.num_generations] * (settings.num_generations > 0)
    counts += [1] * settings.blank_image
    batches = ceil(ceil(plan.questions / size) / plan.ranks) * ceil(size / batch)
    return batches * sum(_generated(plan, count, batch) for count in counts)
