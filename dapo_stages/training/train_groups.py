"""What train-step trains on: the completions in the loss by group, and figures of where they come from."""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from dapo_stages.errors import DataError
from dapo_stages.groups.sampled_groups import check_tokens
from dapo_stages.handoff.lookups import RowLookup
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.policy_folders import version_of
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.shared_prefix.packing import Prompt
    from dapo_stages.training.batches import Sample, TrainGroup

_LARGEST = 3.4028234663852886e38  # number of float32
_PROMPTS_KEPT = 32  # prepared pictures in memory: a group cut over micro-batches is prepared once
# Columns that are read.
_WEIGHTS = ("source", "group_id", "completion_id", "in_loss", "advantage", "importance", "token_weights")
_COMPLETIONS = ("completion_id", "completion_ids", "sampling_logprobs", "policy_version")


def read_groups(stack: ExitStack, inputs: dict[str, Source], policy: Policy) -> list[TrainGroup]:
    """The groups with completions in the loss. Token lists are in memory, pictures are read when needed.

    Files stay open until `stack` is closed. Raises DataError where weights and completions do not go together, and
    where anything is not finite, or not as long as its completion: nothing like that gets as far as a loss.
    """
    from dapo_stages.models.inputs import prompt_of
    from dapo_stages.training.batches import TrainGroup

    weights, version = inputs["weights"], version_of(inputs["policy"])
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
    image, vocabulary = policy.tokens.image_token_id, policy.tokens.vocabulary
    sizes: dict[tuple[str, str], tuple[int, bool]] = {}
    for source, (folder, kind, _) in sources.items():
        for row in folder.rows(kind, ("group_id", "prompt_ids")):
            check_tokens(folder.folder, "prompt_ids", row["group_id"], row["prompt_ids"], vocabulary)
            sizes[source, row["group_id"]] = len(row["prompt_ids"]), image is not None and image in row["prompt_ids"]

    @lru_cache(maxsize=_PROMPTS_KEPT)
    def read(source: str, group_id: str) -> Prompt:
        return prompt_of(prompts[source].one(group_id), policy.processor)

    groups: dict[tuple[str, str], TrainGroup] = {}
    seen: set[tuple[str, str]] = set()
    for row in weights.rows("weights", _WEIGHTS):
        if row["in_loss"]:
            key = source, group_id = row["source"], row["group_id"]
            if source not in sources:
                raise _not_of_these(weights, f"the source {source} of completion {row['completion_id']}")
            if (source, row["completion_id"]) in seen:
                raise _not_of_these(weights, f"completion {row['completion_id']} twice")
            seen.add((source, row["completion_id"]))
            if key not in sizes:
                raise _not_of_these(weights, f"weights of group {group_id} ({source}), whose prompt is not there")
            if key not in groups:
                prompt = partial(read, source, group_id)
                groups[key] = TrainGroup(group_id, prompt, [], *sizes[key], replayed=source == "replay")
            sample = _sample(row, completions[source], weights, version)
            check_tokens(sources[source][0].folder, "completion_ids", row["completion_id"], sample.ids, vocabulary)
            groups[key].samples.append(sample)
    return list(groups.values())


def _sample(row: Row, completions: RowLookup, weights: Source, version: int) -> Sample:
    """A completion in arrays: as Python lists those of a whole iteration would take eight times the memory."""
    from dapo_stages.training.batches import Sample

    if row["completion_id"] not in completions:
        raise _not_of_these(weights, f"weights of completion {row['completion_id']}, which is not in the rollouts")
    completion = completions.one(row["completion_id"])
    ids, per_token = completion["completion_ids"], row["token_weights"]
    if len(ids) != len(per_token):
        found = f"{len(per_token)} weights for the {len(ids)} tokens of {row['completion_id']}"
        raise DataError(weights.folder, found, "one per token", "Run weight-tokens again.")
    sampling = array("f", completion["sampling_logprobs"])
    lag = version - completion["policy_version"]
    importance = 1.0 if row["importance"] is None else row["importance"]
    advantage = row["advantage"] * importance
    if abs(advantage) > _LARGEST:
        found = f"advantage {row['advantage']:g} times importance {importance:g} for {row['completion_id']}"
        raise DataError(weights.folder, found, "what float32 holds", "Run weight-tokens again.")
    return Sample(array("i", ids), sampling, array("f", per_token), advantage, lag)


def _not_of_these(weights: Source, found: str) -> DataError:
    return DataError(weights.folder, found, "weights of these rollouts", "Run weight-tokens again.")


def data_metrics(inputs: dict[str, Source]) -> dict[str, float]:
    """Shares of the whole iteration, as far as its manifests have counted them; the same for each of its updates."""
    sampled, weighted = inputs["rollouts"].manifest.counts, inputs["weights"].manifest.counts
    found = {}
    if "truncated" in sampled:
        found["truncated_share"] = float(sampled["truncated"])
    if weighted.get("groups") and "informative" in weighted:
        found["informative_share"] = weighted["informative"] / weighted["groups"]
    return found


def group_metrics(groups: list[TrainGroup]) -> dict[str, float]:
    """Of the groups of one update: `policy_lag` is the train-steps between sampling and training, mean over
    completions; 0 on-policy, more with `lag` and replay."""
    lags = [sample.lag for group in groups for sample in group.samples]
    return {
        "policy_lag": sum(lags) / len(lags),
        "groups": float(len(groups)),
        "replayed_groups": float(sum(group.replayed for group in groups)),
    }


def engine_difference(metrics: list[Row], limit: float) -> float | None:
    """Mean difference between log-probs of engine and trainer over all updates, with a warning above the limit.

    None where no token is of the policy that is trained.
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
            f"train-step: log-probs of engine and trainer differ by {mean:.3g} on average, more than "
            f"engines.diff_warn={limit:g}. The importance weight corrects for it up to train.engine_is_cap; better "
            "let the engine sample from this very policy, with the same model.dtype and pictures, without top_p, "
            "top_k, min_p and penalties, and give log-probs of what it sampled from."
        )
    return mean
