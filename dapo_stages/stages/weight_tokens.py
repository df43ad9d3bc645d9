"""weight-tokens: rewards and attention in, advantages and the weight of every token in the loss out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages.config import Config, RewardWeights, load_config
from dapo_stages.console import progress
from dapo_stages.errors import DataError
from dapo_stages.manifests import Source
from dapo_stages.outputs import Output, Plan
from dapo_stages.shards import Row
from dapo_stages.stages import frame
from dapo_stages.stages.options import ConfigFile, DryRun, Iteration, Json, Out, Overrides, Overwrite, Rollouts

if TYPE_CHECKING:
    import numpy as np

    from dapo_stages.maths.replay import Entry

SECTIONS = ("weights", "planned_iterations", "attention.enabled")
COMPONENTS = ("accuracy", "vgr", "format", "overlong")


def main(
    config: ConfigFile,
    rollouts: Rollouts,
    attention: Annotated[Path, typer.Option("--attention", help="Folder written by score-attention.", metavar="DIR")],
    iteration: Iteration,
    out: Out,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", help="Weights folder of the iteration before, with its buffer.", metavar="DIR"),
    ] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn rewards and attention into advantages and token weights, and keep the replay buffer.

    Needs no model and no GPU: try other reward weights or another clip on saved rollouts in seconds.

    Example: dapo-stages weight-tokens --config run.yaml --rollouts iter-0001/rollout --attention iter-0001/attention
    --iteration 1 --set weights.smooth_sigma=1.0 --out /tmp/smoothed
    """
    settings = load_config(config, set_)
    inputs = {"rollouts": Source(rollouts, "rollout"), "attention": Source(attention, "score-attention")}
    inputs["attention"].require_input("rollouts", inputs["rollouts"])
    if replay is not None:
        inputs["replay"] = Source(replay, "weight-tokens")
    rewards = tuple(inputs["rollouts"].manifest.rewards)
    section = settings.sections(*SECTIONS) | {"iteration": iteration}
    plan = Plan("weight-tokens", out, section, settings.seed, inputs, rewards)
    frame.run(
        plan,
        lambda output: Weighting(output, settings, iteration).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
    )


@dataclass
class GroupScores:
    """A group without its tokens: what rewards and advantages are made from. Arrays are [N]."""

    group_id: str
    iteration: int
    completion_ids: list[str]
    components: dict[str, np.ndarray]
    truncated: np.ndarray
    rewards: np.ndarray
    advantages: np.ndarray | None = None
    shard: int = -1  # of the rollouts; -1: from the buffer

    @property
    def std(self) -> float:
        from dapo_stages.maths.advantages import std

        return std(self.rewards)


class Weighting:
    """Scalars of all groups are in memory, tokens of one shard at a time."""

    def __init__(self, output: Output, config: Config, iteration: int) -> None:
        from dapo_stages.maths.rewards import phase

        self._output, self._config, self._iteration = output, config, iteration
        self._settings = config.weights
        self._rollouts, self._attention = output.plan.inputs["rollouts"], output.plan.inputs["attention"]
        self._replay = output.plan.inputs.get("replay")
        self._phase = phase(iteration, config.planned_iterations, self._settings.early_fraction)
        weights = self._settings.early_reward_weights if self._phase == "early" else self._settings.reward_weights
        self._reward_weights = _named(weights, output.plan.rewards)
        self._missed_mean = 0

    def run(self) -> None:
        """Score the groups, choose replacements from the buffer, write weights, write the next buffer."""
        from dapo_stages.maths.advantages import advantages

        fresh = list(self._fresh_groups())
        stored, entries = self._stored_groups()
        without_signal = {group.group_id for group in fresh if not self._has_signal(group)}
        replayed = [stored[entry.group_id] for entry in self._drawn(entries, len(without_signal))]
        replaced = set(sorted(without_signal)[: len(replayed)])
        batch = [group for group in fresh if group.group_id not in replaced] + replayed
        for group, values in zip(
            batch, advantages([group.rewards for group in batch], self._settings.scale_rewards), strict=True
        ):
            group.advantages = values
        with progress("weight-tokens: groups", len(fresh) + len(replayed)) as advance:
            self._write_fresh(fresh, replaced, advance)
            self._write_replayed(replayed)
            advance(len(replayed), "")
        buffered = self._write_buffer(fresh, stored, entries)
        self._output.counts |= {
            "groups": len(fresh),
            "without_signal": len(without_signal),
            "replayed": len(replayed),
            "buffer": buffered,
            "reward": _mean([value for group in fresh for value in group.rewards]),
            "reward_phase": self._phase,
            "weights_off_mean": self._missed_mean,
        }

    # Groups of this iteration

    def _fresh_groups(self) -> Iterator[GroupScores]:
        columns = ["completion_id", "group_id", "finish_reason", *self._reward_columns()]
        for shard in range(len(self._rollouts.shards("completions"))):
            kept = self._kept(shard)
            looks = {row["completion_id"]: row["vgr_all"] for row in self._attention_rows(shard, ["vgr_all"])}
            members: dict[str, list[Row]] = {group_id: [] for group_id in kept}
            with self._rollouts.reader("completions", self._rollouts.shards("completions")[shard]) as reader:
                for row in reader.rows(columns):
                    if row["group_id"] in members:
                        members[row["group_id"]].append(row)
            for group_id, rows in members.items():
                missing = [row["completion_id"] for row in rows if row["completion_id"] not in looks]
                if missing:
                    raise DataError(
                        self._attention.folder,
                        f"no row for completion {missing[0]}",
                        "attention of these rollouts",
                        "Run score-attention on this rollout folder again.",
                    )
                yield self._group(group_id, rows, [looks[row["completion_id"]] for row in rows], shard)

    def _group(self, group_id: str, rows: list[Row], looks: list[float | None], shard: int) -> GroupScores:
        import numpy as np

        from dapo_stages.maths.rewards import total, vgr_rewards

        components = {name: np.array([row[f"reward_{name}"] for row in rows], float) for name in self._stored_rewards()}
        vgr = np.array([np.nan if value is None else value for value in looks])
        components["vgr"] = vgr_rewards(
            vgr,
            components["accuracy"] == 1,
            self._settings.vgr_mapping,
            self._settings.vgr_min_range,
            self._settings.vgr_sigma,
            self._settings.hard_negative,
        )
        return GroupScores(
            group_id,
            self._iteration,
            [row["completion_id"] for row in rows],
            components,
            np.array([row["finish_reason"] == "length" for row in rows]),
            total(components, self._reward_weights),
            shard=shard,
        )

    def _has_signal(self, group: GroupScores) -> bool:
        from dapo_stages.maths.replay import admissible

        replay = self._settings.replay
        least = replay.min_reward if replay.size else -float("inf")
        return admissible(float(group.rewards.mean()), group.std, replay.var_epsilon, least)

    def _write_fresh(self, fresh: list[GroupScores], replaced: set[str], advance: Any) -> None:
        by_shard: dict[int, list[GroupScores]] = {}
        for group in fresh:
            by_shard.setdefault(group.shard, []).append(group)
        for shard in range(len(self._rollouts.shards("completions"))):
            groups = by_shard.get(shard, [])
            self._output.write("weights", shard, self._weight_rows(shard, groups, replaced))
            advance(len(groups), "")

    def _weight_rows(self, shard: int, groups: list[GroupScores], replaced: set[str]) -> Iterator[Row]:
        looks = {row["completion_id"]: row["vgr"] for row in self._attention_rows(shard, ["vgr"])}
        lengths = self._lengths(shard)
        for group in groups:
            for index, completion_id in enumerate(group.completion_ids):
                why = self._why_not(group, index, replaced)
                weights = self._token_weights(completion_id, looks[completion_id], lengths[completion_id])
                if not why and looks[completion_id] is None:
                    yield self._row(group, index, weights, "in the loss, unweighted: no attention", "fresh")
                else:
                    yield self._row(group, index, weights, why, "fresh")

    def _why_not(self, group: GroupScores, index: int, replaced: set[str]) -> str:
        """Why a completion stays out of the loss; empty if it does not."""
        if group.group_id in replaced:
            return "replaced by a group from the buffer"
        if group.std <= self._settings.replay.var_epsilon:
            return "all completions of the group have the same reward"
        if group.truncated[index] and self._settings.mask_truncated_completions:
            return "truncated"
        return ""

    def _token_weights(self, completion_id: str, vgr: list[float] | None, length: int) -> list[float]:
        from dapo_stages.maths.weights import token_weights

        if vgr is None or self._settings.scheme == "uniform":
            return [1.0] * length
        if len(vgr) != length:
            raise DataError(
                self._attention.folder,
                f"{len(vgr)} attention rows for the {length} tokens of {completion_id}",
                "one per token",
                "Run score-attention on this rollout folder again.",
            )
        weights, reached = token_weights(
            vgr, self._settings.clip, self._settings.smooth_sigma, self._settings.mean_preserving
        )
        self._missed_mean += not reached
        found: list[float] = weights.tolist()
        return found

    def _row(self, group: GroupScores, index: int, weights: list[float], why: str, source: str) -> Row:
        advantage = 0.0 if group.advantages is None else float(group.advantages[index])
        return {
            "completion_id": group.completion_ids[index],
            "group_id": group.group_id,
            "source": source,
            "source_iteration": group.iteration,
            "reward": float(group.rewards[index]),
            **{f"reward_{name}": float(values[index]) for name, values in group.components.items()},
            "reward_phase": self._phase,
            "advantage": advantage,
            "token_weights": weights,
            "in_loss": not why or why.startswith("in the loss"),
            "why": why or "in the loss",
        }

    # The replay buffer: whole groups of earlier iterations

    def _stored_groups(self) -> tuple[dict[str, GroupScores], list[Entry]]:
        """The groups in the buffer of the iteration before that are not too old, rewarded as of now."""
        import numpy as np

        from dapo_stages.maths.replay import Entry
        from dapo_stages.maths.rewards import total

        if self._replay is None or not self._settings.replay.size:
            return {}, []
        entries = []
        for row in self._replay.rows("buffer", ["group_id", "iteration", "score", "mean_reward", "std_reward"]):
            if self._iteration - row["iteration"] <= self._settings.replay.max_staleness:
                entries.append(Entry(**row))
        members: dict[str, list[Row]] = {entry.group_id: [] for entry in entries}
        columns = ["completion_id", "group_id", "finish_reason", *self._reward_columns(), "reward_vgr"]
        for row in self._replay.rows("buffer-completions", columns):
            if row["group_id"] in members:
                members[row["group_id"]].append(row)
        groups = {}
        for entry in entries:
            rows = members[entry.group_id]
            names = [*self._stored_rewards(), "vgr"]
            components = {name: np.array([row[f"reward_{name}"] for row in rows], float) for name in names}
            groups[entry.group_id] = GroupScores(
                entry.group_id,
                entry.iteration,
                [row["completion_id"] for row in rows],
                components,
                np.array([row["finish_reason"] == "length" for row in rows]),
                total(components, self._reward_weights),
            )
        return groups, entries

    def _drawn(self, entries: list[Entry], count: int) -> list[Entry]:
        import numpy as np

        from dapo_stages.maths.replay import draw

        rng = np.random.default_rng([self._config.seed, self._iteration])
        return draw(entries, count, rng)

    def _write_replayed(self, replayed: list[GroupScores]) -> None:
        number = len(self._rollouts.shards("completions"))
        rows: list[Row] = []
        groups: list[str] = [group.group_id for group in replayed]
        if replayed and self._replay is not None:
            prompts, completions = [], []
            with (
                self._replay.lookup("buffer", "group_id") as stored,
                self._replay.lookup("buffer-completions", "group_id") as members,
            ):
                for group in replayed:
                    prompts.append(_without(stored.one(group.group_id), _BUFFER_GROUP_EXTRA))
                    for index, row in enumerate(members.all(group.group_id)):
                        why = self._why_not(group, index, set())
                        rows.append(self._row(group, index, row["token_weights"], why, "replay"))
                        completions.append(_without(row, _BUFFER_COMPLETION_EXTRA))
            self._output.write("replayed-prompts", 0, prompts)
            self._output.write("replayed-completions", 0, completions)
            self._output.write("weights", number, rows)
        self._output.counts["replayed_groups"] = groups

    def _write_buffer(self, fresh: list[GroupScores], stored: dict[str, GroupScores], entries: list[Entry]) -> int:
        from dapo_stages.maths.replay import Entry, score, update

        settings = self._settings.replay
        new = [
            Entry(
                group.group_id,
                group.iteration,
                score(group.advantages, group.std),
                float(group.rewards.mean()),
                group.std,
            )
            for group in fresh
            if group.advantages is not None and self._has_signal(group)
        ]
        kept = update(entries, new, settings.size, settings.max_staleness, self._iteration)
        shards = {group.group_id: group.shard for group in fresh}
        self._output.write("buffer", 0, self._buffered_prompts(kept, stored, shards))
        self._output.write("buffer-completions", 0, self._buffered_completions(kept, stored, fresh))
        return len(kept)

    def _buffered_prompts(
        self, kept: list[Entry], stored: dict[str, GroupScores], shards: dict[str, int]
    ) -> Iterator[Row]:
        scores = {e.group_id: {"score": e.score, "mean_reward": e.mean_reward, "std_reward": e.std_reward} for e in kept}
        for row in self._replay.rows("buffer") if self._replay and stored else ():
            if row["group_id"] in scores and row["group_id"] in stored:
                yield row | scores[row["group_id"]]
        if any(group_id in shards for group_id in scores):
            for row in self._rollouts.rows("prompts"):
                if row["group_id"] in scores:
                    yield row | scores[row["group_id"]]

    def _buffered_completions(
        self, kept: list[Entry], stored: dict[str, GroupScores], fresh: list[GroupScores]
    ) -> Iterator[Row]:
        wanted = {entry.group_id for entry in kept}
        for row in self._replay.rows("buffer-completions") if self._replay and stored else ():
            if row["group_id"] in wanted and row["group_id"] in stored:
                yield row
        new = {
            completion_id: float(value)
            for group in fresh
            if group.group_id in wanted
            for completion_id, value in zip(group.completion_ids, group.components["vgr"], strict=True)
        }
        for shard, completions in enumerate(self._rollouts.shards("completions") if new else ()):
            weights = {
                row["completion_id"]: row["token_weights"]
                for row in self._output.reopen("weights", shard, ["completion_id", "token_weights"])
            }
            with self._rollouts.reader("completions", completions) as reader:
                for row in reader.rows():
                    key = row["completion_id"]
                    if key in new:
                        yield row | {"reward_vgr": new[key], "token_weights": weights[key]}

    # Columns of the inputs

    def _stored_rewards(self) -> tuple[str, ...]:
        return ("accuracy", "format", "overlong", *self._output.plan.rewards)

    def _reward_columns(self) -> list[str]:
        return [f"reward_{name}" for name in self._stored_rewards()]

    def _kept(self, shard: int) -> list[str]:
        with self._rollouts.reader("prompts", self._rollouts.shards("prompts")[shard]) as reader:
            return [row["group_id"] for row in reader.rows(["group_id", "kept"]) if row["kept"]]

    def _lengths(self, shard: int) -> dict[str, int]:
        with self._rollouts.reader("completions", self._rollouts.shards("completions")[shard]) as reader:
            return {
                row["completion_id"]: len(row["completion_ids"])
                for row in reader.rows(["completion_id", "completion_ids"])
            }

    def _attention_rows(self, shard: int, columns: list[str]) -> Iterator[Row]:
        with self._attention.reader("attention", self._attention.shards("attention")[shard]) as reader:
            yield from reader.rows(["completion_id", *columns])


_BUFFER_GROUP_EXTRA = ("score", "mean_reward", "std_reward")
_BUFFER_COMPLETION_EXTRA = ("reward_vgr", "token_weights")


def _named(weights: RewardWeights, plugins: tuple[str, ...]) -> dict[str, float]:
    return {name: getattr(weights, name) for name in COMPONENTS} | {
        name: weights.plugins.get(name, 1.0) for name in plugins
    }


def _without(row: Row, names: tuple[str, ...]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _mean(values: list[float]) -> float:
    return float(sum(values) / len(values)) if values else 0.0
