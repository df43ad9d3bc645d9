"""The policy gradients of different weightings of the same completions, and the angles between them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.terminal.console import progress

if TYPE_CHECKING:
    import torch

    from dapo_stages.models.policy import Policy
    from dapo_stages.models.shared_prefix.packing import Group


class Weighted(NamedTuple):
    """What one folder says about a completion in the loss."""

    group_id: str
    advantage: float
    weights: array[float]


def gradient_cosines(
    plan: Plan, weighted: Sequence[Mapping[str, Weighted]], shared: Sequence[str], groups: int
) -> tuple[dict[tuple[int, int], float | None], dict[str, Any]]:
    """Cosines between the gradients of all pairs of weightings at `policy`, and what they were computed on.

    In float32 even if training is not, so that differences come from the weights alone.
    """
    from dapo_stages.config import ModelConfig
    from dapo_stages.models.policy_loading import open_policy
    from dapo_stages.training.gradients import cosine, norm, policy_gradients

    source, rollouts = plan.policy, plan.inputs["rollouts"]
    made = rollouts.manifest.config
    config = ModelConfig(dtype="float32", quantization=made.get("model.quantization"))
    policy = open_policy(source, config, trainable=source.is_adapter)
    policy.attend("grouped")
    chosen = _evenly_spaced(weighted[0], shared, groups)
    temperature = float(made["rollout"]["sampler"]["temperature"])
    found = policy_gradients(policy, _batches(policy, rollouts, weighted, chosen), temperature, len(weighted))
    about = {
        "policy": str(source.folder),
        "groups": len(chosen),
        "completions": sum(map(len, chosen.values())),
        "norms": [norm(gradient) for gradient in found],
    }
    pairs = combinations(range(len(found)), 2)
    return {(a, b): cosine(found[a], found[b]) for a, b in pairs}, about


def _evenly_spaced(weighted: Mapping[str, Weighted], shared: Sequence[str], most: int) -> dict[str, list[str]]:
    """`most` groups, evenly spaced over the rollouts, each with its completions."""
    members: dict[str, list[str]] = {}
    for key in shared:
        members.setdefault(weighted[key].group_id, []).append(key)
    names, count = list(members), min(most, len(members))
    return {name: members[name] for name in (names[number * len(names) // count] for number in range(count))}


def _batches(
    policy: Policy, rollouts: Source, weighted: Sequence[Mapping[str, Weighted]], chosen: Mapping[str, list[str]]
) -> Iterator[tuple[Group, torch.Tensor]]:
    """Each group with weight times advantage of its tokens, one row per weighting."""
    import torch

    from dapo_stages.models.inputs import prompt_of
    from dapo_stages.models.shared_prefix.packing import Group

    with ExitStack() as stack, progress("compare-weights: gradients of groups", len(chosen)) as advance:
        prompts = stack.enter_context(rollouts.lookup("prompts", "group_id"))
        columns = ["completion_id", "completion_ids"]
        completions = stack.enter_context(rollouts.lookup("completions", "completion_id", columns))
        for name, keys in chosen.items():
            ids = [completions.one(key)["completion_ids"] for key in keys]
            coefficients = [[w * one[key].advantage for key in keys for w in one[key].weights] for one in weighted]
            group = Group(prompt_of(prompts.one(name), policy.processor), ids)
            yield group, torch.tensor(coefficients, dtype=torch.float32)
            advance(1, "")
