"""What train-step trains on: the completions in the loss by group, and metrics about their origin."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from dapo_stages.errors import DataError
from dapo_stages.groups.sampled_groups import check_tokens
from dapo_stages.handoff.lookups import RowLookup
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.shared_prefix.packing import Prompt
    from dapo_stages.training.batches import Sample, TrainGroup

_LARGEST = 3.4028234663852886e38  # of float32
_PROMPTS_KEPT = 32  # prepared prompts in memory, so that a group cut over micro-batches is prepared once
_AGAIN = "Run weight-tokens again, on these rollouts."
# Columns that are read.
_WEIGHTS = ("source", "group_id", "completion_id", "in_loss", "advantage", "importance", "token_weights")
_COMPLETIONS = ("completion_id", "completion_ids", "sampling_logprobs", "policy_version", "loss_mask")


def read_groups(
    stack: ExitStack, plan: Plan, policy: Policy, changes: Sequence[Callable[[Row], Row]] = ()
) -> list[TrainGroup]:
    """The groups with completions in the loss. Token lists are in memory, images are read on demand.

    Groups with images get a view for each of `changes`, which makes a prompt row another one.

    Files stay open until `stack` is closed. Raises DataError if weights and completions do not match, or if anything is
    not finite or not as long as its completion, so that none of this reaches a loss.
    """
    from dapo_stages.models.inputs import prompt_of
    from dapo_stages.training.batches import TrainGroup

    inputs, version = plan.inputs, plan.policy.version
    weights = inputs["weights"]
    sources = {
        "fresh": (inputs["rollouts"], "prompts", "completions"),
        "replay": (weights, "replayed-prompts", "replayed-completions"),
    }
    prompts = {
        source: stack.enter_context(folder.lookup(kind, "group_id")) for source, (folder, kind, _) in sources.items()
    }
    completions = {
        source: stack.enter_context(folder.lookup(kind, "completion_id", _COMPLETIONS))
        for source, (folder, _, kind) in sources.items()
    }
    vision, vocabulary = policy.tokens.vision_ids, policy.tokens.vocabulary
    sizes: dict[tuple[str, str], tuple[int, bool]] = {}
    for source, (folder, kind, _) in sources.items():
        for row in folder.rows(kind, ("group_id", "prompt_ids")):
            check_tokens(folder.folder, "prompt_ids", row["group_id"], row["prompt_ids"], vocabulary)
            sizes[source, row["group_id"]] = len(row["prompt_ids"]), not vision.isdisjoint(row["prompt_ids"])

    @lru_cache(maxsize=_PROMPTS_KEPT)
    def read(source: str, group_id: str) -> Prompt:
        return prompt_of(prompts[source].one(group_id), policy.processor)

    @lru_cache(maxsize=_PROMPTS_KEPT)
    def changed(source: str, group_id: str, number: int) -> Prompt:
        return prompt_of(changes[number](prompts[source].one(group_id)), policy.processor)

    groups: dict[tuple[str, str], TrainGroup] = {}
    seen: set[tuple[str, str]] = set()
    for row in weights.rows("weights", _WEIGHTS):
        if row["in_loss"]:
            key = source, group_id = row["source"], row["group_id"]
            if source not in sources:
                problem = f"the source of completion {row['completion_id']} is {source}, but must be fresh or replay"
                raise DataError(weights.folder, problem, _AGAIN)
            if (source, row["completion_id"]) in seen:
                raise DataError(weights.folder, f"completion {row['completion_id']} appears twice", _AGAIN)
            seen.add((source, row["completion_id"]))
            if key not in sizes:
                problem = f"group {group_id} ({source}) has weights, but its prompt is missing"
                raise DataError(weights.folder, problem, _AGAIN)
            if key not in groups:
                prompt = partial(read, source, group_id)
                _, has_images = sizes[key]
                views = [partial(changed, source, group_id, i) for i in range(len(changes) if has_images else 0)]
                groups[key] = TrainGroup(
                    group_id, prompt, [], *sizes[key], replayed=source == "replay", views=tuple(views)
                )
            sample = _sample(row, completions[source], weights, version)
            check_tokens(sources[source][0].folder, "completion_ids", row["completion_id"], sample.ids, vocabulary)
            groups[key].samples.append(sample)
    return list(groups.values())


def _sample(row: Row, completions: RowLookup, weights: Source, version: int) -> Sample:
    """A completion in arrays: Python lists of a whole iteration would take eight times the memory."""
    from dapo_stages.training.batches import Sample

    if row["completion_id"] not in completions:
        problem = f"completion {row['completion_id']} has weights, but is not in the rollouts"
        raise DataError(weights.folder, problem, _AGAIN)
    completion = completions.one(row["completion_id"])
    ids, per_token = completion["completion_ids"], row["token_weights"]
    if len(ids) != len(per_token):
        problem = f"expected a weight per token, got {len(per_token)} weights for the {len(ids)} tokens of completion "
        raise DataError(weights.folder, problem + str(row["completion_id"]), _AGAIN)
    mask = None if completion["loss_mask"] is None else bytes(completion["loss_mask"])
    if mask is not None and not any(mask):
        problem = f"completion {row['completion_id']} is in the loss, but its loss_mask leaves out all of its tokens"
        raise DataError(weights.folder, problem, _AGAIN)
    sampling = array("f", completion["sampling_logprobs"])
    lag = version - completion["policy_version"]
    importance = 1.0 if row["importance"] is None else row["importance"]
    advantage = row["advantage"] * importance
    if abs(advantage) > _LARGEST:
        product = f"advantage {row['advantage']:g} times importance {importance:g}"
        problem = f"{product} of completion {row['completion_id']} does not fit in float32"
        raise DataError(weights.folder, problem, _AGAIN)
    return Sample(array("i", ids), sampling, array("f", per_token), advantage, mask, lag)


def data_metrics(inputs: dict[str, Source]) -> dict[str, float]:
    """Shares of the whole iteration, as far as its manifests have them; the same for each of its updates."""
    sampled, weighted = inputs["rollouts"].manifest.counts, inputs["weights"].manifest.counts
    found = {}
    if "truncated" in sampled:
        found["truncated_share"] = float(sampled["truncated"])
    if weighted.get("groups") and "informative" in weighted:
        found["informative_share"] = weighted["informative"] / weighted["groups"]
    return found


def group_metrics(groups: list[TrainGroup]) -> dict[str, float]:
    """Metrics of one update's groups: `policy_lag` is the number of train-steps between sampling and training, mean
    over completions; 0 on-policy, more with `lag` and replay."""
    lags = [sample.lag for group in groups for sample in group.samples]
    return {
        "policy_lag": sum(lags) / len(lags),
        "groups": float(len(groups)),
        "replayed_groups": float(sum(group.replayed for group in groups)),
    }


def engine_difference(metrics: list[Row], limit: float) -> float | None:
    """Mean difference between logprobs of engine and trainer over all updates, with a warning above the limit.

    None if no token was sampled by the policy under training.
    """
    updates: dict[int, dict[str, float]] = {}
    for row in metrics:
        updates.setdefault(row["update"], {})[row["name"]] = row["value"]
    compared = [found for found in updates.values() if found["engine_diff_mean"] is not None]
    tokens = sum(found["engine_tokens"] for found in compared)
    if not tokens:
        return None
    mean = sum(found["engine_diff_mean"] * found["engine_tokens"] for found in compared) / tokens
    if not mean <= limit:
        say(
            f"train-step: logprobs of engine and trainer differ by {mean:.3g} on average, more than "
            f"engines.diff_warn={limit:g}. The importance weight corrects for it up to train.engine_is_cap. It is "
            "better to let the engine sample from this very policy, with the same model.dtype and images, without "
            "top_p, top_k, min_p and penalties, and return the logprobs of the distribution that it samples from."
        )
    return mean
