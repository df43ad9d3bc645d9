"""Rollouts as later stages read them: their groups, and the configuration that goes with them."""

from __future__ import annotations

from collections.abc import Sequence

from dapo_stages.config import Config
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import say


def as_sampled(config: Config, rollouts: Source) -> Config:
    """The configuration of the iteration that rollouts are of, with the temperature they were sampled at.

    Log-probs of a trainer are of the distribution sampled from, so no later word on the temperature counts.
    """
    sampled = rollouts.manifest.config
    found, temperature = config.at(int(sampled["iteration"])), sampled["rollout"]["sampler"]["temperature"]
    if found.rollout.sampler.temperature == temperature:
        return found
    say(f"the rollouts were sampled at temperature {temperature:g}, which counts, not rollout.sampler.temperature")
    sampler = found.rollout.sampler.model_copy(update={"temperature": temperature})
    return found.model_copy(update={"rollout": found.rollout.model_copy(update={"sampler": sampler})})


def groups_of(
    rollouts: Source, number: int, prompt_columns: Sequence[str] | None, completion_columns: Sequence[str]
) -> tuple[list[Row], dict[str, list[Row]]]:
    """The prompts of a shard, and the completions of each by group_id.

    Raises DataError where the two do not go together: a group that has no completion, or no prompt.
    """
    shards = {kind: rollouts.shards(kind) for kind in ("prompts", "completions")}
    if len(shards["prompts"]) != len(shards["completions"]):
        found = " and ".join(f"{len(of_kind)} shards of {kind}" for kind, of_kind in shards.items())
        raise DataError(rollouts.folder, found, "as many of both", "Run rollout again.")
    with rollouts.reader("prompts", shards["prompts"][number]) as reader:
        prompts = list(reader.rows(prompt_columns))
    members: dict[str, list[Row]] = {prompt["group_id"]: [] for prompt in prompts}
    with rollouts.reader("completions", shards["completions"][number]) as reader:
        for row in reader.rows(completion_columns):
            if row["group_id"] not in members:
                found = f"a completion of group {row['group_id']}"
                needed = f"completions of the groups in {shards['prompts'][number].name}"
                raise DataError(reader.path, found, needed, "Run rollout again.")
            members[row["group_id"]].append(row)
        for group_id, rows in members.items():
            if not rows:
                raise DataError(reader.path, f"no completion of group {group_id}", "at least one", "Run rollout again.")
    return prompts, members


def check_tokens(where: object, column: str, key: str, ids: Sequence[int], vocabulary: int) -> None:
    """Refuse token ids that a policy has no embedding for: a GPU would stop with all that is on it."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        found = f"token {min(ids) if min(ids) < 0 else max(ids)} in column {column} of {key}"
        needed = f"ids below {vocabulary}, the policy's vocabulary"
        raise DataError(where, found, needed, "Name the policy that the rollouts were made for, or run rollout again.")
