"""Seconds of each stage of an iteration before it starts, by what takes them. Formulas: docs/sizing.md."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from dapo_stages.planning import stage_costs
from dapo_stages.planning.run_plan import Plan, Seconds

# Until a process has imported what it needs: measured on CPUs; on CUDA an assumption, contexts and libraries included.
START = {"cpu": 3.0, "cuda": 20.0}
WITHOUT_MODEL = 1.0  # the same where no torch is needed, measured
LAUNCH = 10.0  # more for several processes, an assumption: the launcher's own imports, and their finding one another
START_VLLM = 60.0  # until it takes requests, an assumption


def seconds_of(plan: Plan) -> Seconds:
    """Of each stage, one after the other, the slowest rank of each; parts do not overlap."""
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
    """A policy is hashed by every rank, then read; not hashed is an adapter's base, which init-policy refers to."""
    written = plan.files(0)["train-step: policy"]
    base = plan.d.parameters * plan.b if plan.config.train.lora is not None else 0  # quantised when read
    return {"verifying": plan.rates.verifying(written), "loading": plan.rates.loading(base + written)}


def _rollout(plan: Plan, start: float) -> dict[str, float]:
    """The shards of the busiest rank; a server is up already."""
    engine, size = plan.config.rollout.engine, ceil(plan.shard)
    batch = min(size, plan.config.rollout.batch_groups) if engine == "transformers" else size
    batches = ceil(plan.shards[0] / plan.ranks) * ceil(size / batch)
    found = {"start-up": start + (START_VLLM if engine == "vllm" else 0)}
    if engine != "server":
        found |= _opening(plan)
    return found | {"generation": batches * _generated(plan, plan.work.count, batch, engine == "transformers")}


def _generated(plan: Plan, count: int, groups: int, ours: bool = True) -> float:
    """Seconds of a batch."""
    work, called = replace(plan.work, count=count), ours and not plan.config.model.compile
    return stage_costs.decoding(plan.d, work, groups, plan.b, plan.rates, called=called)


def _scoring(plan: Plan) -> dict[str, float]:
    """The shards of the busiest rank, as many of their groups as there are to score."""
    settings, shards = plan.config.attention, plan.shards[1]
    if not settings.enabled:
        return {}
    scored = plan.kept if settings.groups == "kept" else plan.sampled
    operations = stage_costs.scoring(plan.d, plan.work, logprobs=settings.logprobs, blank=settings.blank_image)
    groups = ceil(shards / plan.ranks) * scored / shards
    return _opening(plan) | {"forward": groups * operations / plan.rates.operations}


def _training(plan: Plan) -> dict[str, float]:
    """One process of a machine hashes the state, every rank reads it whole, and each writes and hashes its share."""
    train, rates, files = plan.config.train, plan.rates, plan.files(0)
    updates, state = train.updates_per_iteration, files["train-step: state"]
    opening = _opening(plan)
    operations = stage_costs.update(plan.d, plan.work, checkpointing=train.gradient_checkpointing, updates=updates)
    if plan.refers:  # opened and run as well
        opening = {name: 2 * seconds for name, seconds in opening.items()}
        operations += stage_costs.forward(plan.d, plan.work, logits=True)
    sent = 0.0
    if plan.ranks > 1:
        passes = plan.micro_batches * (1 - 1 / updates)
        sent = updates * stage_costs.traffic(
            plan.parallel, plan.trained[0], plan.d.parameters, plan.micro_batches, passes, plan.ranks, plan.b
        ) + stage_costs.state_traffic(plan.parallel, state, plan.ranks)
    moved = files.get("train-step: reference", 0) / (train.reference_update_every or 1)
    policy = files["train-step: policy"] + moved  # by the first rank
    return {
        "verifying": opening["verifying"] + rates.verifying(state),
        "loading": opening["loading"] + rates.loading(state),
        "updates": plan.groups * operations / rates.operations,
        "between ranks": sent / rates.link,
        "writing": (policy + state) / rates.disk,
        "hashing": (policy + state / plan.ranks) / rates.hashed,
    }


def _evaluating(plan: Plan) -> float:
    """Greedy answers, samples, and greedy ones to blanked pictures, a batch of questions at a time."""
    settings = plan.config.evaluate
    size = min(plan.questions, settings.questions_per_shard)
    if not size:
        return 0.0
    batch = min(size, settings.batch_groups)
    counts = [1] * settings.greedy + [settings.num_generations] * (settings.num_generations > 0)
    counts += [1] * settings.blank_image
    batches = ceil(ceil(plan.questions / size) / plan.ranks) * ceil(size / batch)
    return batches * sum(_generated(plan, count, batch) for count in counts)
