"""rollout: prompts and a policy in, groups of completions with their rewards out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dapo_stages import ranks
from dapo_stages.config import Config, load_config
from dapo_stages.data.visuals import VIDEOS
from dapo_stages.engines.batch_sizes import BatchSizes
from dapo_stages.engines.engine_choice import check_prompts, open_engine
from dapo_stages.errors import DataError
from dapo_stages.groups.history import chances_of_rows, earlier_rollouts
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.lookups import RowIndex
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output, shard_name
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PROMPTING, PolicyFolder
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import Advance, progress, say
from dapo_stages.terminal.options import (
    ConfigFile,
    Data,
    DryRun,
    Iteration,
    Json,
    Out,
    Overrides,
    Overwrite,
    PolicyPath,
)

if TYPE_CHECKING:
    import numpy as np

    from dapo_stages.engines import Completion, Engine
    from dapo_stages.groups.informative import Informative, Judged
    from dapo_stages.rewards.registry import Rewards
    from dapo_stages.rewards.scored import Scored

SECTIONS = ("model.dtype", "model.quantization", "rollout")


def main(
    config_file: ConfigFile,
    policy: PolicyPath,
    data: Data,
    iteration: Iteration,
    out: Out,
    history: Annotated[
        list[Path] | None,
        typer.Option(
            "--history",
            help="Rollout folder of an earlier iteration, or a run's folder for all of them; read if "
            "rollout.curriculum is set. May be repeated.",
            metavar="DIR",
        ),
    ] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Sample completions for the prompts of an iteration and reward them.

    With dynamic sampling (DAPO) it keeps drawing prompts until enough groups are informative, that is, some but not
    all of their completions are correct. Every sampled group is written; `kept` marks those that are trained on.

    Example: dapo-stages rollout --config run.yaml --policy policy --data data --iteration 1 --out iter-0001/rollout
    """
    from dapo_stages.rewards.registry import Rewards

    config = load_config(config_file, set_).at(iteration)
    inputs = {"policy": PolicyFolder(policy), "data": Source(data, "prepare-data")}
    if config.rollout.curriculum is not None:
        inputs |= earlier_rollouts(history or [], iteration, inputs["data"])
    rewards = Rewards(config.rewards, config.rollout.max_completion_length, root=Path.cwd())
    recorded = config.sections(*SECTIONS) | {"rewards": rewards.section, "iteration": iteration}
    if config.rollout.informative is not None and config.rollout.informative.reward == "total":
        recorded |= config.sections(
            "planned_iterations", "weights.reward_weights", "weights.early_reward_weights", "weights.early_fraction"
        )
    plan = Plan("rollout", out, recorded, config.seed, inputs, rewards.names, verify=config.verify)
    carry_out.run(
        plan,
        lambda output: Rollout(output, config, rewards, iteration).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        needs=("dapo_stages.models.policy_loading",) if config.rollout.engine == "transformers" else (),
    )


class RoundShard(NamedTuple):
    """A part of a round: what one pair of Parquet files holds."""

    number: int
    round: int
    first: int  # groups before it
    prompts: list[int]  # rows of the training table


class Rollout:
    """One iteration's sampling, shard by shard; finished shards of an interrupted run are not sampled again.

    Several processes divide the shards among themselves. Which groups are kept, and which shards are needed at all, is
    decided from the finished files in order, so it does not matter which process sampled them, or when.
    """

    def __init__(self, output: Output, config: Config, rewards: Rewards, iteration: int) -> None:
        self._output, self._config, self._rewards, self._iteration = output, config, rewards, iteration
        self._source = output.plan.policy
        self._kept = 0

    def run(self) -> None:
        """Sample prompts until there are enough groups, or the rounds are used up.

        Prompts are drawn in portions of whole shards: `oversample` times the groups that are still missing. All shards
        of a portion are written, even if fewer would have been enough.
        """
        target = self._config.rollout.prompts_per_iteration
        rounds = self._config.rollout.max_resample_rounds if self._config.rollout.dynamic_sampling else 1
        done: list[RoundShard] = []
        sampled: list[RoundShard] = []  # but not closed yet
        with (
            self._output.plan.inputs["data"].index("train") as table,
            progress("rollout: informative groups" if rounds > 1 else "rollout: groups", target) as advance,
        ):
            shards = self._shards(len(table), rounds)
            while self._kept < target:
                portion = self._portion()
                wave = list(islice(shards, _for_all_processes(portion - len(sampled))))
                self._sample(wave, table, advance)
                sampled += wave
                if not sampled:
                    break
                for shard in sampled[:portion]:
                    self._close(shard, table)
                    done.append(shard)
                del sampled[:portion]
        if not done:
            raise DataError(
                self._output.plan.inputs["data"].folder,
                "no training prompts",
                "Run prepare-data with data.held_out_fraction below 1.",
            )
        if self._kept < target:
            from dapo_stages.groups.informative import advice

            judged = [group for shard in done for group in self._judged(shard.number)]
            what = advice(judged, self._informative.reward, self._config.rollout.num_generations)
            say(
                f"rollout: only {self._kept} of {target} groups are informative after {done[-1].round + 1} rounds; "
                f"continuing with these. {what}"
            )
        self._output.share()
        self._output.keep(shard_name(kind, shard.number) for kind in ("prompts", "completions") for shard in done)
        if ranks.rank() == 0:
            prompting = self._output.plan.inputs["data"].manifest.counts.get(PROMPTING)
            self._output.counts |= self._figures(done) | ({PROMPTING: prompting} if prompting else {})

    def _shards(self, num_prompts: int, rounds: int) -> Iterator[RoundShard]:
        settings = self._config.rollout
        count, size = _times(settings.oversample, settings.prompts_per_iteration), settings.groups_per_shard
        numbers, before, given = itertools.count(), 0, set[int]()
        chances = None
        if settings.curriculum is not None:
            chances = chances_of_rows(self._output.plan.inputs, settings.curriculum)
        for round_ in range(rounds if num_prompts else 0):
            indices = self._prompts_of(round_, num_prompts, count, given, chances)
            given.update(indices)
            for start in range(0, len(indices), size):
                yield RoundShard(next(numbers), round_, before + start, indices[start : start + size])
            before += len(indices)

    def _prompts_of(
        self, round_: int, num_prompts: int, count: int, given: set[int], chances: np.ndarray | None
    ) -> list[int]:
        """Rows of the training table for a round; with a curriculum, some of them swapped for others."""
        import numpy as np

        from dapo_stages.maths.curriculum import swap
        from dapo_stages.maths.schedule import prompts_of
        from dapo_stages.maths.source_shares import prompts_by_share

        seed, iteration = self._config.seed, self._iteration
        shares = {name: share for name, share in self._config.rollout.source_shares.items() if share > 0}
        if shares:
            rows = prompts_by_share(self._rows_of_datasets, shares, seed, iteration, round_, count)
        else:
            rows = prompts_of(num_prompts, seed, iteration, round_, count)
        if chances is not None:
            # The leading 2 keeps this stream apart from those of maths/schedule.py.
            rows = swap(rows, chances, given, np.random.default_rng([2, seed, iteration, round_]))
        found: list[int] = rows.tolist()
        return found

    @cached_property
    def _rows_of_datasets(self) -> dict[str, np.ndarray]:
        """Rows of the training table by dataset. Raises DataError for one with a share, but no prompts."""
        import numpy as np

        data, found = self._output.plan.inputs["data"], dict[str, list[int]]()
        for number, row in enumerate(data.rows("train", ["source"])):
            found.setdefault(row["source"], []).append(number)
        for name, share in self._config.rollout.source_shares.items():
            if share > 0 and name not in found:
                problem = f"no training prompts of the dataset {name}, which has a share in rollout.source_shares"
                raise DataError(data.folder, problem, "Set its share to 0, or run prepare-data with that dataset.")
        return {name: np.array(rows, dtype=np.int64) for name, rows in found.items()}

    def _portion(self) -> int:
        """How many shards to sample next, for any number of processes."""
        settings = self._config.rollout
        missing = settings.prompts_per_iteration - self._kept
        return math.ceil(_times(settings.oversample, missing) / settings.groups_per_shard)

    def _sample(self, wave: list[RoundShard], table: RowIndex, advance: Advance) -> None:
        """Write the completions of some shards."""
        shards = {shard.number: shard for shard in wave}
        for number in self._output.fill("completions", shards, lambda n: self._completions(shards[n], table)):
            groups = self._judged(number)
            accuracy = sum(group.correct for group in groups) / (len(groups) * self._config.rollout.num_generations)
            advance(sum(map(self._is_wanted, groups)), f"accuracy {accuracy:.3f}")

    def _completions(self, shard: RoundShard, table: RowIndex) -> Iterator[Row]:
        from dapo_stages.rewards.scored import Group

        prompts = [table[index] for index in shard.prompts]
        sampled = self._generate(shard.number, prompts)
        rows = [
            prompt | {"group_id": group_id} for group_id, prompt in zip(self._group_ids(shard), prompts, strict=True)
        ]
        texts = [[self._engine.tokens.text(one.ids) for one in completions] for completions in sampled]
        lengths = [[len(one.ids) for one in completions] for completions in sampled]
        reasons = [[one.finish_reason for one in completions] for completions in sampled]
        scored = self._rewards.score(list(map(Group, rows, texts, lengths, reasons)), shard.first)
        for row, completions, said, rewards in zip(rows, sampled, texts, scored, strict=True):
            for sample, one in enumerate(completions):
                yield self._completion(row["group_id"], sample, one, said[sample], rewards[sample])

    def _close(self, shard: RoundShard, table: RowIndex) -> None:
        """Decide which groups of a shard are kept, and write its prompts. All processes decide, one writes."""
        groups: list[Row] = []
        for group_id, judged in zip(self._group_ids(shard), self._judged(shard.number), strict=True):
            kept = self._is_wanted(judged) and not self._is_surplus()
            self._kept += kept
            group: Row = {"group_id": group_id, "iteration": self._iteration}
            group |= {"round": shard.round, "num_correct": judged.correct, "kept": kept}
            if self._config.rollout.informative is not None:
                group["informative"] = judged.wanted
            groups.append(group)
        name = shard_name("prompts", shard.number)
        if shard.number % ranks.count() == ranks.rank() and not self._output.has(name):
            # What only rewards need is left out, and what only prompts with videos have.
            left_out = (
                {"row"} if VIDEOS in self._output.plan.inputs["data"].manifest.counts else {"row", "frame_seconds"}
            )
            rows = (_prompt(table[index], left_out) | group for index, group in zip(shard.prompts, groups, strict=True))
            self._output.write("prompts", shard.number, rows)

    def _group_ids(self, shard: RoundShard) -> list[str]:
        return [f"i{self._iteration:04d}-g{shard.first + offset:06d}" for offset in range(len(shard.prompts))]

    def _judged(self, number: int) -> list[Judged]:
        """The groups of a shard."""
        return self._informative.groups(list(self._output.reopen("completions", number, self._informative.columns)))

    @cached_property
    def _informative(self) -> Informative:
        from dapo_stages.groups.informative import Informative

        return Informative(self._config, self._iteration, self._output.plan.rewards)

    def _is_wanted(self, group: Judged) -> bool:
        return group.wanted or not self._config.rollout.dynamic_sampling

    def _is_surplus(self) -> bool:
        """Whether there are enough groups. Without dynamic sampling, weight-tokens decides: it knows all rewards."""
        settings = self._config.rollout
        discards = settings.dynamic_sampling and settings.surplus == "discard"
        return discards and self._kept >= settings.prompts_per_iteration

    def _generate(self, number: int, prompts: list[Row]) -> list[list[Completion]]:
        """Completions in the order of the prompts; prompts of similar length share a batch, to save padding."""
        import numpy as np

        found: dict[int, list[Completion]] = {}
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]["prompt_ids"]))
        for batch, part in enumerate(self._batch_sizes.over(len(prompts))):
            places = order[part.start : part.stop]
            seed = np.random.SeedSequence([self._config.seed, self._iteration, number, batch]).generate_state(1)
            rows = [prompts[place] for place in places]
            sampled = self._engine.generate(rows, int(seed[0]), self._config.rollout.num_generations)
            found.update(zip(places, sampled, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _completion(self, group_id: str, sample: int, completion: Completion, text: str, scored: Scored) -> Row:
        return {
            "completion_id": f"{group_id}-c{sample:03d}",
            "group_id": group_id,
            "sample": sample,
            "text": text,
            "completion_ids": completion.ids,
            "token_texts": self._engine.tokens.token_texts(completion.ids),
            "sampling_logprobs": completion.logprobs,
            "finish_reason": completion.finish_reason,
            "engine": self._config.rollout.engine,
            "policy_version": self._source.version,
            **scored.columns,
            "answer": scored.read.answer,
            "read_from": scored.read.place,
        }

    def _figures(self, shards: list[RoundShard]) -> dict[str, Any]:
        totals = {"completions": 0, "correct": 0.0, "format": 0.0, "tokens": 0, "cut": 0}
        columns = ["reward_accuracy", "reward_format", "completion_ids", "finish_reason"]
        silent = {f"reward_{name}": 0 for name in self._output.plan.rewards}
        for shard in shards:
            for row in self._output.reopen("completions", shard.number, [*columns, *silent]):
                silent = {name: count + (row[name] is None) for name, count in silent.items()}
                totals["completions"] += 1
                totals["correct"] += row["reward_accuracy"]
                totals["format"] += row["reward_format"]
                totals["tokens"] += len(row["completion_ids"])
                totals["cut"] += row["finish_reason"] == "length"
        completions = totals["completions"]
        return {
            "groups": sum(len(shard.prompts) for shard in shards),
            "kept": self._kept,
            "completions": completions,
            "rounds": shards[-1].round + 1,
            "accuracy": totals["correct"] / completions,
            "format": totals["format"] / completions,
            "mean_tokens": totals["tokens"] / completions,
            "truncated": totals["cut"] / completions,
            **{f"no_{name}": count for name, count in silent.items() if count},
        }

    @cached_property
    def _batch_sizes(self) -> BatchSizes:
        return BatchSizes(self._config.rollout.batch_groups, whole=self._engine.batches_itself)

    @cached_property
    def _engine(self) -> Engine:
        check_prompts(self._output.plan.inputs["data"], "train", self._config.rollout.engine)
        return open_engine(self._source, self._config)


def _prompt(row: Row, left_out: Collection[str]) -> Row:
    """A row of the training table without some columns."""
    return {name: value for name, value in row.items() if name not in left_out}


def _times(factor: float, count: int) -> int:
    """A multiple of a count, rounded up; 1.1 · 10 = 11.000…02 is 11."""
    return math.ceil(factor * count - 1e-9)


def _for_all_processes(shards: int) -> int:
    """At least this many shards, and equally many per process: one that would be idle samples ahead."""
    return math.ceil(max(shards, 0) / ranks.count()) * ranks.count()
