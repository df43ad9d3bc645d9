"""Which stages make -j2 may run at the same time on the same GPUs (SHARE_GPUS=1), by their peaks."""

from __future__ import annotations

from typing import Any

from dapo_stages.planning.run_plan import GIB, Plan
from dapo_stages.planning.staying import opens, with_vllm

# What waits for neither: evaluate of an iteration and the stages of the next one; with a lag, also its train-step and
# the sampling of the next one. (The table of the pipeline says so by their inputs.)
_PAIRS = (
    ("rollout", "evaluate"),
    ("score-attention", "evaluate"),
    ("train-step", "evaluate"),
    ("rollout", "train-step"),
    ("score-attention", "train-step"),
)


def beside(plan: Plan, memory: float, room: int) -> dict[str, dict[str, Any]]:
    """Pairs such as `rollout + evaluate`: bytes of both on a device with so many GiB, and whether they fit into `room`.

    vLLM takes its share of the device, whatever it needs. What opens no policy there, as with a server, is left out.
    """
    peaks = {stage: peak.total for stage, peak in plan.memory().items() if opens(plan, stage)}
    share = int(memory * GIB * plan.config.engines.vllm.gpu_memory_utilization)
    peaks |= {stage: share for stage in peaks if with_vllm(plan, stage) and plan.device == "cuda"}
    found = {}
    for one, other in _PAIRS:
        if one in peaks and other in peaks:
            total = peaks[one] + peaks[other]
            found[f"{one} + {other}"] = {"total": total, "fits": total <= room}
    return found
