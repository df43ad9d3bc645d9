"""Rollouts as later stages read them: their groups, and the configuration that goes with them."""

from __future__ import annotations

from collections.abc import Sequence

from dapo_stages.config import Config
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import say


def as_sampled(config: Config, rollouts: Source) -> Config:
    """The configuration for the iteration of these rollouts, with the temperature that they were sampled at.

    The trainer's logprobs are of the distribution sampled from, so a temperature that was set later does not apply.
    """
    sampled = rollouts.manifest.config
    found, temperature = config.at(int(sampled["iteration"])), sampled["rollout"]["sampler"]["temperature"]
    if found.rollout.sampler.temperature == temperature:
        return found
    say(f"using temperature {temperature:g}, as the rollouts were sampled, instead of rollout.sampler.temperature")
    sampler = found.rollout.sampler.model_copy(update={"temperature": temperature})
    return found.model_copy(update={"rollout": found.rollout.model_copy(update={"sampler": sampler})})


def groups_of(
    rollouts: Source, number: int, prompt_columns: Sequence[str] | None, completion_columns: Sequence[str]
) -> tuple[list[Row], dict[str, list[Row]]]:
    """The prompts of a shard, and the completions of each by group_id.

    Raises DataError if they do not match: a group has no completion, or no prompt.
    """
    shards = {kind: rollouts.shards(kind) for kind in ("prompts", "completions")}
    if len(shards["prompts"]) != len(shards["completions"]):
        prompt_shards, completion_shards = len(shards["prompts"]), len(shards["completions"])
        raise DataError(
            rollouts.folder,
            f"{prompt_shards} shards of prompts do not match {completion_shards} shards of completions",
            "Run rollout again.",
        )
    with rollouts.reader("prompts", shards["prompts"][number]) as reader:
        prompts = list(reader.rows(prompt_columns))
    members: dict[str, list[Row]] = {prompt["group_id"]: [] for prompt in prompts}
    with rollouts.reader("completions", shards["completions"][number]) as reader:
        for row in reader.rows(completion_columns):
            if row["group_id"] not in members:
                raise DataError(
                    reader.path,
                    f"group {row['group_id']} of a completion is not in {shards['prompts'][number].name}",
                    "Run rollout again.",
                )
            members[row["group_id"]].append(row)
        for group_id, rows in members.items():
            if not rows:
                raise DataError(reader.path, f"group {group_id} has no completions", "Run rollout again.")
    return prompts, members


def check_tokens(where: object, column: str, key: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raise DataError for token ids that a policy has no embedding for: on a GPU they would end the process."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise DataError(
            where,
            f"column {column} of {key} has token {min(ids) if min(ids) < 0 else max(ids)}, but the policy's vocabulary "
            f"only has ids below {vocabulary}",
            "Pass the policy that the rollouts were made for, or run rollout again.",
        )
