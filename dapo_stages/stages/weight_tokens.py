"""weight-tokens: rewards and attention in, advantages and the weight of every token in the loss out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from dapo_stages.config import Config, load_config
from dapo_stages.config.layers import token_vgr_column, vgr_column
from dapo_stages.errors import DataError
from dapo_stages.groups.advantage_file import AdvantageFile, advantage_file
from dapo_stages.groups.group_scores import GroupScores, reward_columns, reward_weights, score_group
from dapo_stages.groups.loss_masks import MASK, own_tokens, spread
from dapo_stages.groups.measured import check_columns, check_layers
from dapo_stages.groups.replay_buffer import ReplayBuffer
from dapo_stages.groups.sampled_groups import groups_of
from dapo_stages.groups.scheme_file import scheme_file
from dapo_stages.groups.token_weighting import TokenWeighting
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import Advance, progress, say
from dapo_stages.terminal.options import ConfigFile, DryRun, Iteration, Json, Out, Overrides, Overwrite, Rollouts

SECTIONS = ("weights", "planned_iterations")


def main(
    config_file: ConfigFile,
    rollouts: Rollouts,
    attention: Annotated[Path, typer.Option("--attention", help="Folder written by score-attention.", metavar="DIR")],
    iteration: Iteration,
    out: Out,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", help="Weights folder of the previous iteration, with its buffer.", metavar="DIR"),
    ] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn rewards and attention into advantages and token weights, and update the replay buffer.

    Needs no model and no GPU: try other reward weights or another clip on saved rollouts in seconds.

    Example: dapo-stages weight-tokens --config run.yaml --rollouts iter-0001/rollout --attention iter-0001/attention
    --iteration 1 --set weights.smooth_sigma=1.0 --out /tmp/smoothed
    """
    config = load_config(config_file, set_).at(iteration)
    inputs = {"rollouts": Source(rollouts, "rollout"), "attention": Source(attention, "score-attention")}
    inputs["attention"].require_input("rollouts", inputs["rollouts"])
    scheme = scheme_file(config)
    weighting = TokenWeighting(config.weights, scheme)
    check_columns(inputs["attention"], weighting, config.weights)
    check_layers(inputs["attention"], config)
    sampled = inputs["rollouts"].manifest.config["iteration"]
    if sampled != iteration:
        raise DataError(
            rollouts, f"expected rollouts of --iteration {iteration}, got iteration {sampled}", "Name the right folder."
        )
    rewards = tuple(inputs["rollouts"].manifest.rewards)
    if replay is not None:
        inputs["replay"] = Source(replay, "weight-tokens")
        if tuple(inputs["replay"].manifest.rewards) != rewards:
            say("weight-tokens: the stored groups have other plug-in rewards, so the replay buffer starts empty")
            del inputs["replay"]
    advantage = advantage_file(config, rewards)
    recorded = config.sections(*SECTIONS) | {"iteration": iteration}
    functions = {"weights.scheme": scheme, "weights.advantage": advantage}
    own = {key: one.content for key, one in functions.items() if one is not None}
    if own:  # an edited scheme is another scheme
        recorded["files"] = {key: sha256(content).hexdigest() for key, content in own.items()}
    plan = Plan("weight-tokens", out, recorded, config.seed, inputs, rewards, verify=config.verify)
    carry_out.run(
        plan,
        lambda output: Weighting(output, config, iteration, weighting, advantage, own).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        alone=True,
    )


class Weighting:
    """Holds the rewards of all groups in memory, and the tokens of one shard at a time."""

    def __init__(
        self,
        output: Output,
        config: Config,
        iteration: int,
        weighting: TokenWeighting,
        advantage: AdvantageFile | None = None,
        own: Mapping[str, bytes] | None = None,
    ) -> None:
        """`own`: the user's files of scheme and advantage, by setting."""
        from dapo_stages.maths.group_rewards import phase

        self._output, self._config, self._iteration, self._weighting = output, config, iteration, weighting
        self._settings, self._advantage, self._own = config.weights, advantage, own or {}
        self._rollouts, self._attention = output.plan.inputs["rollouts"], output.plan.inputs["attention"]
        self._phase = phase(iteration, config.planned_iterations, self._settings.early_fraction)
        weights = self._settings.early_reward_weights if self._phase == "early" else self._settings.reward_weights
        self._reward_weights = reward_weights(weights, output.plan.rewards)
        self._off_mean = 0
        self._surplus: set[str] = set()

    def run(self) -> None:
        """Reward the groups, replace some from the buffer, write weights and the next buffer."""
        from dapo_stages.maths.advantage_estimators import Rewarded, estimate

        settings = self._settings
        self._output.add_copies(self._own)
        fresh = list(self._fresh_groups())
        replay = self._output.plan.inputs.get("replay")
        buffer = ReplayBuffer(
            replay, settings.replay, self._iteration, self._reward_weights, lengths=self._needs_lengths
        )
        replayed, replaced = buffer.exchange(fresh, self._target, self._config.seed)
        staying = [group for group in fresh if group.group_id not in replaced]
        self._surplus = self._beyond(self._target - len(replayed), staying)
        batch = [group for group in staying if group.group_id not in self._surplus] + replayed
        rewarded = [Rewarded(group.rewards, group.components, group.lengths) for group in batch]
        if self._advantage is not None:
            scaled = self._advantage.estimate(rewarded)
        else:
            scaled = estimate(rewarded, settings.advantage, settings.scale_rewards, self._reward_weights)
        for group, values in zip(batch, scaled, strict=True):
            group.advantages = values
        self._survey([group for group in staying if group.group_id not in self._surplus])
        with progress("weight-tokens: groups", len(batch) + len(replaced)) as advance:
            self._write_fresh(fresh, replaced, advance)
            self._write_replayed(buffer, replayed)
            advance(len(replayed), "")
        entering = [group for group in fresh if self._has_signal(group)]
        self._output.counts |= {
            "groups": len(fresh),
            "informative": sum(group.std > self._settings.replay.var_epsilon for group in fresh),
            "without_signal": len(fresh) - len(entering),
            "replayed": len(replayed),
            "buffer": buffer.write_next(self._output, self._rollouts, entering),
            "reward": _mean([float(value) for group in fresh for value in group.rewards]),
            "reward_phase": self._phase,
            "weights_off_mean": self._off_mean,
        }
        if self._surplus:
            self._output.counts["surplus"] = len(self._surplus)

    def _fresh_groups(self) -> Iterator[GroupScores]:
        """The kept groups of this iteration."""
        columns = reward_columns(self._output.plan.rewards, lengths=self._needs_lengths)
        column = vgr_column(self._settings.vgr_layers)
        for shard in range(len(self._rollouts.shards("completions"))):
            prompts, members = groups_of(self._rollouts, shard, ["group_id", "kept"], columns)
            looks = {row["completion_id"]: row[column] for row in self._attention_rows(shard, column)}
            for prompt in prompts:
                if prompt["kept"]:
                    yield self._group(prompt["group_id"], members[prompt["group_id"]], looks, shard)

    def _group(self, group_id: str, rows: list[Row], looks: dict[str, float | None], shard: int) -> GroupScores:
        import numpy as np

        from dapo_stages.maths.group_rewards import vgr_rewards

        missing = [row["completion_id"] for row in rows if row["completion_id"] not in looks]
        if missing:
            raise self._other_attention(f"no row for completion {missing[0]}")
        found = [looks[row["completion_id"]] for row in rows]
        settings = self._settings
        rewards = vgr_rewards(
            np.array([np.nan if value is None else value for value in found]),
            np.array([row["reward_accuracy"] == 1 for row in rows]),
            settings.vgr_mapping,
            settings.vgr_min_range,
            settings.vgr_sigma,
            settings.hard_negative,
            settings.vgr_min_relative_range,
        )
        return score_group(group_id, self._iteration, rows, rewards, self._reward_weights, shard)

    @property
    def _target(self) -> int:
        """Groups that the rollout was asked for; the buffer replaces those without signal, and any that are missing."""
        return int(self._rollouts.manifest.config["rollout"]["prompts_per_iteration"])

    def _beyond(self, room: int, groups: list[GroupScores]) -> set[str]:
        """Groups beyond `room`, if surplus is discarded; those with signal are kept first."""
        if self._rollouts.manifest.config["rollout"].get("surplus") == "keep":
            return set()
        wanted = [group for group in groups if not self._is_filtered(group)]
        wanted.sort(key=lambda group: not self._has_signal(group))
        return {group.group_id for group in wanted[room:]}

    @property
    def _needs_lengths(self) -> bool:
        from dapo_stages.maths.advantage_estimators import OF_LENGTHS

        own = self._advantage
        return self._settings.advantage in OF_LENGTHS if own is None else own.needs_lengths

    def _is_filtered(self, group: GroupScores) -> bool:
        return self._settings.filter == "reward" and not self._differs(group)

    def _differs(self, group: GroupScores) -> bool:
        """Whether there is something to learn from a group: total rewards differ, or for gdpo, any reward does."""
        from dapo_stages.maths.advantages import std

        spreads = [group.std]
        if self._settings.advantage == "gdpo":
            weights = self._reward_weights
            spreads += [std(v[v == v]) for name, v in group.components.items() if weights[name] != 0]
        return max(spreads) > self._settings.replay.var_epsilon

    def _has_signal(self, group: GroupScores) -> bool:
        """Whether the group may enter the buffer, and is not replaced from it."""
        from dapo_stages.maths.replay import admissible

        replay = self._settings.replay
        least = replay.min_reward if replay.size else float("-inf")
        return admissible(group.mean, group.std, replay.var_epsilon, least)

    def _write_fresh(self, fresh: list[GroupScores], replaced: set[str], advance: Advance) -> None:
        for shard in range(len(self._rollouts.shards("completions"))):
            groups = [group for group in fresh if group.shard == shard]
            self._output.write("weights", shard, self._weight_rows(shard, groups, replaced))
            advance(len(groups), "")

    def _survey(self, groups: list[GroupScores]) -> None:
        """Let the weighting see all tokens that the loss takes from these groups."""

        def in_loss() -> Iterator[Row]:
            for shard in range(len(self._rollouts.shards("completions"))):
                here = [group for group in groups if group.shard == shard]
                rows = self._rows_to_weigh(shard) if here else {}
                for group in here:
                    for index, completion_id in enumerate(group.completion_ids):
                        if rows[completion_id]["status"] == "ok" and not self._left_out(group, index):
                            yield rows[completion_id]

        with self._lengths_checked():
            self._weighting.survey(in_loss)

    def _rows_to_weigh(self, shard: int) -> dict[str, Row]:
        """The attention rows of a shard, with what is needed of their completions, by completion: of the tokens that
        the policy wrote."""
        vgr = token_vgr_column(self._settings.layers)
        wanted = {name: vgr if name == "vgr" else name for name in ("status", *self._weighting.attention_columns)}
        rows = {
            row["completion_id"]: {name: row[column] for name, column in wanted.items()}
            for row in self._attention_rows(shard, *dict.fromkeys(wanted.values()))
        }
        names = dict.fromkeys(("completion_id", "completion_ids", MASK, *self._weighting.completion_columns))
        with self._rollouts.reader("completions", self._rollouts.shards("completions")[shard]) as reader:
            for row in reader.rows(list(names)):
                if (key := row["completion_id"]) in rows:
                    with self._lengths_checked(key):
                        rows[key] = own_tokens(rows[key] | row)
        return rows

    def _weight_rows(self, shard: int, groups: list[GroupScores], replaced: set[str]) -> Iterator[Row]:
        rows = self._rows_to_weigh(shard)
        for group in groups:
            factors = self._weighting.factors([rows[completion_id] for completion_id in group.completion_ids])
            for index, completion_id in enumerate(group.completion_ids):
                weights, unweighted = self._token_weights(rows[completion_id])
                weights = spread(weights, rows[completion_id][MASK])
                factor = float(factors[index])
                if group.advantages is not None and group.advantages[index] < 0:
                    factor *= self._settings.negative_scale
                if factor != 1:
                    weights = [factor * weight for weight in weights]
                why = (
                    "replaced by a group from the buffer"
                    if group.group_id in replaced
                    else self._left_out(group, index)
                )
                yield self._row(group, index, weights, "fresh", not why, why or unweighted)

    def _left_out(self, group: GroupScores, index: int) -> str:
        """Why a completion stays out of the loss; empty if it does not."""
        if group.group_id in self._surplus:
            return "more groups than asked for"
        if self._is_filtered(group):
            return "all completions of the group have the same reward"
        if group.truncated[index] and self._settings.mask_truncated_completions:
            return "truncated"
        if group.silent[index]:
            return "no token in its loss_mask"
        return ""

    def _token_weights(self, row: Row) -> tuple[list[float], str]:
        """Weights of one completion's tokens, and the reason if all are 1 for lack of data."""
        if row["status"] == "no_image":
            return [1.0] * len(row["completion_ids"]), "no image: every token weighs 1"
        if row["status"] != "ok":
            return [1.0] * len(row["completion_ids"]), "no attention: every token weighs 1"
        with self._lengths_checked(row["completion_id"]):
            weighed = self._weighting.weigh(row)
        self._off_mean += not weighed.reached
        values: list[float] = weighed.weights.tolist()
        return values, "" if weighed.known else f"no {self._settings.scheme}: every token weighs 1"

    @contextmanager
    def _lengths_checked(self, completion_id: str = "") -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            where = f" ({completion_id})" if completion_id else ""
            raise self._other_attention(f"expected a value per token, got {error}{where}") from None

    def _write_replayed(self, buffer: ReplayBuffer, replayed: list[GroupScores]) -> None:
        stored = buffer.copy_replayed(self._output, replayed)
        rows = []
        for group in replayed:
            for index, completion_id in enumerate(group.completion_ids):
                why = self._left_out(group, index)
                rows.append(self._row(group, index, stored[completion_id], "replay", not why, why))
        if rows:
            self._output.write("weights", len(self._rollouts.shards("completions")), rows)

    def _row(self, group: GroupScores, index: int, weights: list[float], source: str, in_loss: bool, why: str) -> Row:
        return {
            "completion_id": group.completion_ids[index],
            "group_id": group.group_id,
            "source": source,
            "source_iteration": group.iteration,
            "reward": float(group.rewards[index]),
            **group.reward_columns(index),
            "reward_phase": self._phase,
            "importance": group.importance,
            "advantage": 0.0 if group.advantages is None else float(group.advantages[index]),
            "token_weights": weights,
            "in_loss": in_loss,
            "why": why,
        }

    def _attention_rows(self, shard: int, *columns: str) -> Iterator[Row]:
        shards = self._attention.shards("attention")
        count = len(self._rollouts.shards("completions"))
        if len(shards) != count:
            raise self._other_attention(f"expected {count} shard(s), as the rollouts have, got {len(shards)}")
        with self._attention.reader("attention", shards[shard]) as reader:
            yield from reader.rows(["completion_id", *columns])

    def _other_attention(self, problem: str) -> DataError:
        return DataError(self._attention.folder, problem, "Run score-attention on this rollout folder again.")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
