"""Estimated seconds of each stage of an iteration, by part. Formulas: docs/sizing.md.

The parts outside of the work are named as in the manifests (processes/phases.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

from dapo_stages.engines.batch_sizes import size_of
from dapo_stages.planning import stage_costs
from dapo_stages.planning.layer_memory import Work
from dapo_stages.planning.run_plan import Plan
from dapo_stages.planning.staying import opens, readers, with_vllm
from dapo_stages.processes.phases import PHASES

Seconds = dict[str, dict[str, float]]  # stage -> part -> seconds
OUTSIDE = tuple(phase for phase in PHASES if phase != "work")

# Until a process has imported what it needs: measured for CPUs; assumed for CUDA, with contexts and libraries.
START = {"cpu": 3.0, "cuda": 20.0}
WITHOUT_MODEL = 1.0  # the same without torch, measured
LAUNCH = 10.0  # in addition for several processes, assumed: the launcher's imports, and connecting the processes
START_VLLM = 60.0  # until it takes requests, assumed
HANDED_OVER = 0.1  # until a process that stays has begun with a command, measured
HASHERS = {"cpu": 2, "cuda": 4}  # threads that hash the files of a process: four, if there are cores for them


def seconds_of(plan: Plan) -> Seconds:
    """Seconds of each stage on its slowest rank; neither stages nor parts overlap, except for what is written behind:
    train-step waits for the rest of it."""
    light = {"start": WITHOUT_MODEL}
    found = {
        "rollout": _rollout(plan),
        "score-attention": _scoring(plan),
        "weight-tokens": light,
        "train-step": _training(plan),
        "evaluate": _begin(plan, "evaluate") | {"generation": _evaluating(plan)},
        "report": light,
    }
    meanwhile = total(found) - sum(found["train-step"].values())
    found["train-step"]["save"] += max(0.0, behind(plan) - meanwhile)
    return found


def total(seconds: Seconds) -> float:
    """Seconds of an iteration."""
    return sum(sum(parts.values()) for parts in seconds.values())


def outside(parts: Mapping[str, float]) -> float:
    """Seconds of a stage that are not its work."""
    return sum(parts.get(phase, 0.0) for phase in OUTSIDE)


def behind(plan: Plan) -> float:
    """Seconds to write and hash the state while other stages run; 0 if train-step does."""
    if not plan.resident:
        return 0.0
    state = plan.files(0)["train-step: state"]
    return state / plan.rates.disk + state / plan.ranks / (HASHERS[plan.device] * plan.rates.hashed)


def _begin(plan: Plan, stage: str) -> dict[str, float]:
    """Start, and open the policy.

    A policy was hashed when it was written. Another machine hashes it once, every rank by itself; with `verify: always`
    every stage does, an adapter's base included.
    """
    vllm = START_VLLM if with_vllm(plan, stage) else 0.0
    start = HANDED_OVER if plan.resident else START[plan.device] + vllm + (LAUNCH if plan.ranks > 1 else 0)
    if not opens(plan, stage):
        return {"start": start}
    written, base = plan.files(0)["train-step: policy"], _base(plan)
    first = next(one for one in ("evaluate", "rollout", "score-attention", "train-step") if opens(plan, one))
    hashed = base + written if plan.config.verify == "always" else written if plan.nodes > 1 and stage == first else 0
    loaded = base + written if stage in readers(plan) else 0
    return {"start": start, "verify": plan.rates.verifying(hashed), "load": plan.rates.loading(loaded)}


def _base(plan: Plan) -> int:
    """Bytes of the base that an adapter is read with."""
    return plan.d.parameters * plan.b if plan.config.train.lora is not None else 0  # quantized on reading


def _rollout(plan: Plan) -> dict[str, float]:
    """The shards of the busiest rank; a server is already running."""
    engine, size = plan.config.rollout.engine, ceil(plan.shard)
    batch = min(size, size_of(plan.config.rollout.batch_groups)) if engine == "transformers" else size
    batches = ceil(plan.shards[0] / plan.ranks) * ceil(size / batch)
    found = _begin(plan, "rollout")
    return found | {"generation": batches * _generated(plan, plan.work, batch, engine == "transformers")}


def _generated(plan: Plan, work: Work, groups: int, ours: bool = True) -> float:
    """Seconds to generate a batch."""
    called = ours and not plan.config.model.compile
    return stage_costs.decoding(plan.d, work, groups, plan.b, plan.rates, called=called)


def _scoring(plan: Plan) -> dict[str, float]:
    """The shards of the busiest rank, with only those groups that are scored."""
    settings, shards = plan.config.attention, plan.shards[1]
    found = _begin(plan, "score-attention")
    if not settings.enabled:
        return found
    scored = plan.kept if settings.groups == "kept" else plan.sampled
    operations = stage_costs.scoring(plan.d, plan.work, plan.passes)
    groups = ceil(shards / plan.ranks) * scored / shards
    return found | {"forward": groups * operations / plan.rates.operations}


def _training(plan: Plan) -> dict[str, float]:
    """Each rank reads, writes and hashes its share of the state; DDP's read all. A kept one is not read, and is written
    behind, once the ranks have exchanged their parts."""
    train, rates, files = plan.config.train, plan.rates, plan.files(0)
    updates, state = train.updates_per_iteration, files["train-step: state"]
    moved = files.get("train-step: reference", 0) / (train.reference_update_every or 1)
    policy = files["train-step: policy"] + moved  # written by rank 0
    found = _begin(plan, "train-step")
    found["verify"] += rates.verifying(_unknown(plan, state))
    views, recompute = (0, False) if train.perception is None else (train.perception.views, train.perception.recompute)
    operations = stage_costs.update(
        plan.d,
        plan.work,
        checkpointing=train.gradient_checkpointing,
        updates=updates,
        views=views,
        recompute=recompute,
        passes=train.passes,
    )
    if plan.refers:  # the reference is opened and run as well
        reference = _base(plan) + files["train-step: policy"]
        found["verify"] += rates.verifying(reference) if plan.config.verify == "always" else 0
        found["load"] += rates.loading(moved if plan.resident else reference)
        operations += stage_costs.forward(plan.d, plan.work, logits=True)
    sent = 0.0
    if plan.ranks > 1:
        forwards = plan.micro_batches * (1 - 1 / updates + (views > 0 and not recompute)) / train.passes
        sent = (
            train.passes
            * updates
            * stage_costs.traffic(
                plan.parallel,
                plan.trained[0],
                plan.d.parameters,
                plan.micro_batches,
                forwards,
                plan.ranks,
                plan.b,
                plan.sums,
            )
        )
    found |= {
        "updates": plan.groups * operations / rates.operations,
        "between ranks": sent / rates.link,
        "save": policy / rates.disk,
        "hash": policy / rates.hashed,
    }
    found["save"] += stage_costs.state_traffic(plan.parallel, state, plan.ranks) / rates.link
    if not plan.resident:
        share = state / plan.ranks / (HASHERS[plan.device] * rates.hashed)
        read = state if plan.parallel in ("single", "ddp") else state / plan.ranks
        found["load"] += max(rates.loading(read), state / rates.disk)
        found["save"] += state / rates.disk
        found["hash"] += max(0.0, share - policy / rates.disk)  # hashed while the policy is written
    return found


def _unknown(plan: Plan, state: int) -> float:
    """Bytes of the state that a machine hashes: what others have written, or all of it with `verify: always`."""
    return state if plan.config.verify == "always" else state * (1 - 1 / plan.nodes)


def _evaluating(plan: Plan) -> float:
    """Greedy completions, samples, and greedy completions for blanked images, a batch of questions at a time."""
    settings = plan.config.evaluate
    size = min(plan.questions, settings.questions_per_shard)
    if not size:
        return 0.0
    batch = min(size, size_of(settings.batch_groups))
    counts = [1] * settings.greedy + [settings.num_generations] * (settings.num_generations > 0)
    counts += [1] * settings.blank_image
    batches = ceil(ceil(plan.questions / size) / plan.ranks) * ceil(size / batch)
    return batches * sum(_generated(plan, replace(plan.asked, count=count), batch) for count in counts)
