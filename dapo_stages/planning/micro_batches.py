"""What train.batch_completions: auto is, on ranks with so much memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from dapo_stages.config import Config
from dapo_stages.handoff import kept
from dapo_stages.planning.dimensions import dimensions_of
from dapo_stages.planning.fitting import HEADROOM, with_settings
from dapo_stages.planning.run_plan import PROCESS, Plan
from dapo_stages.planning.stage_costs import Rates
from dapo_stages.planning.stage_memory import Parallel
from dapo_stages.planning.staying import memory
from dapo_stages.processes import collectives
from dapo_stages.processes.memory import Gpu, gpu

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy

# Layouts whose ranks exchange gradients after every micro-batch; the others do so once per update.
EXCHANGING = ("zero2", "zero3", "zero2-offload", "zero3-offload", "fsdp2")


def settled(plan: Plan, room: int) -> Plan:
    """The plan with a number of completions, on ranks with `room` bytes for live ones."""
    if plan.config.train.batch_completions != "auto":
        return plan
    groups = ceil(plan.completions / plan.work.count)
    return with_settings(plan, f"train.batch_completions={_fitting(plan, room, groups)}")


def micro_batch_size(config: Config, policy: Policy, accelerator: Any, ranks: int, groups: int) -> int:
    """Completions of a micro-batch of a train-step that has begun, the same on all ranks, for mini-batches of up to
    `groups` groups: by the memory of the rank whose GPU has the least, on CPUs a whole group."""
    from dapo_stages.training.launching.frameworks import layout

    if config.train.batch_completions != "auto" or policy.device.type == "cpu":
        return config.micro_batch
    model, own = policy.base.config.to_dict(), ceil(groups / ranks)
    found = completions_at_once(config, model, layout(accelerator), ranks, own, gpu(), resident=kept.keeps())
    return int(min(collectives.gather(found)))


def completions_at_once(
    config: Config,
    model: Mapping[str, Any],
    parallel: str,
    ranks: int,
    groups: int,
    device: Gpu | None,
    *,
    resident: bool = False,
) -> int:
    """What fits into a micro-batch of one rank, for updates of up to `groups` groups on it.

    `model`: its config.json. `device`: the memory of its GPU; None on a CPU. A model whose sizes are not known gets a
    whole group.
    """
    count = config.rollout.num_generations
    if config.train.batch_completions != "auto" or device is None:
        return config.micro_batch
    try:
        d = dimensions_of(model)
    except (ValueError, KeyError):
        return count
    others = max(0, device.others - PROCESS["cuda"])  # a process's own context is in both
    room = int(device.total * HEADROOM["cuda"]) - others
    plan = Plan(d, config, ranks, cast(Parallel, parallel), "cuda", Rates(1, 1, 1, 1), resident=resident)
    return _fitting(replace(plan, update=groups * count), room, groups)


def _fitting(plan: Plan, room: int, groups: int) -> int:
    """Whole groups if they fit, several where that saves exchanges; else the largest part of one that fits."""
    count = plan.work.count
    if plan.device == "cpu":  # the same numbers on every machine
        return count

    def fits(size: int) -> bool:
        tried = with_settings(plan, f"train.batch_completions={size}")
        return memory(tried)["train-step"].total <= room

    if plan.parallel in EXCHANGING:
        for parts in range(1, groups):
            if fits(size := ceil(groups / parts) * count):
                return size
    size = count
    while size > 1 and not fits(size):
        size = ceil(size / 2)
    return size
