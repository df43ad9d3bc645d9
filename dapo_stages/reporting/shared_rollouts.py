"""Rollouts as a dataset that other people can open: a row per prompt, with its images and all completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dapo_stages.groups.sampled_groups import groups_of
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row, Shard, write_shard

OWN = ("accuracy", "format", "overlong")  # rewards of every rollout
_COMPLETION = ("group_id", "text", "finish_reason", "completion_ids", "policy_version")
_PROMPT = ("group_id", "iteration", "images", "problem", "solution", "prompt_text", "slice", "num_correct", "kept")


def rewards_of(rollouts: Sequence[Source]) -> list[str]:
    """The rewards that all of them have, by name."""
    further = [set(one.manifest.rewards) for one in rollouts]
    return [*OWN, *sorted(set.intersection(*further))]


def table_name(source: Source) -> str:
    """The file of an iteration's rollout."""
    return f"iteration-{int(source.manifest.config['iteration']):04d}.parquet"


def write_tables(rollouts: Sequence[Source], folder: Path) -> list[Shard]:
    """Write one Parquet file per iteration into `folder`.

    What the source of the data was called here, and its other columns, stay here.
    """
    from dapo_stages.handoff.schemas import shared_schema

    rewards = rewards_of(rollouts)
    schema = shared_schema(rewards)
    return [write_shard(folder / table_name(source), schema, _rows(source, rewards)) for source in rollouts]


def _rows(source: Source, rewards: Sequence[str]) -> Iterator[Row]:
    names = [f"reward_{name}" for name in rewards]
    for number in range(len(source.shards("completions"))):
        prompts, members = groups_of(source, number, _PROMPT, [*_COMPLETION, *names])
        for prompt in prompts:
            sampled = members[prompt["group_id"]]
            yield {
                "images": prompt["images"],
                "problem": prompt["problem"],
                "solution": prompt["solution"],
                "completions": [one["text"] for one in sampled],
                "finish_reasons": [one["finish_reason"] for one in sampled],
                "tokens": [len(one["completion_ids"]) for one in sampled],
                **{name: [one[name] for one in sampled] for name in names},
                "num_correct": prompt["num_correct"],
                "kept": prompt["kept"],
                "slice": prompt["slice"],
                "prompt": prompt["prompt_text"],
                "iteration": prompt["iteration"],
                "policy_version": sampled[0]["policy_version"],
                "group_id": prompt["group_id"],
            }
