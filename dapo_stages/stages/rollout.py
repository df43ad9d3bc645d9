"""rollout: prompts and a policy in, groups of completions with their rewards out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.config import Config, load_config
from dapo_stages.console import progress, say
from dapo_stages.errors import DataError
from dapo_stages.manifests import Source
from dapo_stages.outputs import Output, Plan
from dapo_stages.shards import Row
from dapo_stages.stages import frame
from dapo_stages.stages.engines import open_engine
from dapo_stages.stages.options import ConfigFile, Data, DryRun, Iteration, Json, Out, Overrides, Overwrite
from dapo_stages.stages.options import Policy as PolicyFolder
from dapo_stages.stages.policies import check_policy, version_of

if TYPE_CHECKING:
    from dapo_stages.engines import Completion, Engine
    from dapo_stages.rewards.registry import Rewards

SECTIONS = ("model.dtype", "rollout", "rewards")


def main(
    config: ConfigFile,
    policy: PolicyFolder,
    data: Data,
    iteration: Iteration,
    out: Out,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Sample completions for the prompts of an iteration and reward them.

    With dynamic sampling (DAPO) it keeps drawing prompts until enough groups are informative, that is, some but not
    all of their completions are correct. Every sampled group is written; `kept` marks those that go on to training.

    Example: dapo-stages rollout --config run.yaml --policy policy --data data --iteration 1 --out iter-0001/rollout
    """
    from dapo_stages.rewards.registry import Rewards

    settings = load_config(config, set_)
    inputs = {"policy": check_policy(Source(policy)), "data": Source(data, "prepare-data")}
    rewards = Rewards(settings.rewards, settings.rollout.max_completion_length, root=Path.cwd())
    section = settings.sections(*SECTIONS) | {"iteration": iteration, "plugins": rewards.hashes}
    plan = Plan("rollout", out, section, settings.seed, inputs, rewards.names)
    frame.run(
        plan,
        lambda output: Rollout(output, settings, rewards, iteration).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
    )


class Rollout:
    """One iteration's sampling, shard by shard; finished shards of an interrupted run are not sampled again."""

    def __init__(self, output: Output, config: Config, rewards: Rewards, iteration: int) -> None:
        self._output, self._config, self._rewards, self._iteration = output, config, rewards, iteration
        self._source = output.plan.inputs["policy"]
        self._kept = 0
        self._totals = {"groups": 0, "kept": 0, "completions": 0, "correct": 0.0, "format": 0.0, "tokens": 0, "cut": 0}

    def run(self) -> None:
        """Sample rounds of prompts until there are enough groups, or the rounds are used up."""
        target = self._config.rollout.prompts_per_iteration
        rounds = self._config.rollout.max_resample_rounds if self._config.rollout.dynamic_sampling else 1
        number = -1
        with (
            self._output.plan.inputs["data"].index("train") as table,
            progress("rollout: informative groups" if rounds > 1 else "rollout: groups", target) as advance,
        ):
            for number, (round_, start, indices) in enumerate(self._parts(len(table), rounds)):
                before = self._kept
                if not (self._output.has(f"prompts-{number:05d}.parquet")):
                    self._sample(number, round_, start, [table[i] for i in indices])
                self._count(number)
                advance(self._kept - before, f"accuracy {self._totals['correct'] / self._totals['completions']:.3f}")
                if rounds > 1 and self._kept >= target:
                    break
        if number < 0:
            raise DataError(self._output.plan.inputs["data"].folder, "no training prompts", "some", "Run prepare-data.")
        if self._kept < target:
            say(
                f"rollout: {self._kept} of {target} groups are informative after {round_ + 1} rounds; going on with "
                "these. Raise rollout.max_resample_rounds for more."
            )
        self._output.counts |= self._figures(round_ + 1)

    def _parts(self, num_prompts: int, rounds: int) -> Iterator[tuple[int, int, list[int]]]:
        """(round, number of groups before, rows of the training table) of each shard."""
        from dapo_stages.maths.schedule import prompts_of

        count, size = self._config.rollout.prompts_per_iteration, self._config.rollout.groups_per_shard
        before = 0
        for round_ in range(rounds if num_prompts else 0):
            indices = prompts_of(num_prompts, self._config.seed, self._iteration, round_, count).tolist()
            for start in range(0, len(indices), size):
                yield round_, before + start, indices[start : start + size]
            before += len(indices)

    def _sample(self, number: int, round_: int, start: int, prompts: list[Row]) -> None:
        groups, completions = [], []
        kept = self._kept
        for offset, (prompt, sampled) in enumerate(zip(prompts, self._generate(number, prompts), strict=True)):
            group_id = f"i{self._iteration:04d}-g{start + offset:06d}"
            rows = [self._completion(group_id, i, prompt, c) for i, c in enumerate(sampled)]
            correct = sum(row["reward_accuracy"] == 1 for row in rows)
            informative = 0 < correct < len(rows) and kept < self._config.rollout.prompts_per_iteration
            keep = informative or not self._config.rollout.dynamic_sampling
            kept += keep
            group = {"group_id": group_id, "iteration": self._iteration, **prompt}
            groups.append(group | {"round": round_, "num_correct": correct, "kept": keep})
            completions += rows
        self._output.write("completions", number, completions)
        self._output.write("prompts", number, groups)

    def _generate(self, number: int, prompts: list[Row]) -> list[list[Completion]]:
        """Completions in the order of the prompts; batches are of similar length, so that little is padded."""
        import numpy as np

        size = len(prompts) if self._engine.batches_itself else self._config.rollout.batch_groups
        found: dict[int, list[Completion]] = {}
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]["prompt_ids"]))
        for batch, start in enumerate(range(0, len(prompts), size)):
            places = order[start : start + size]
            seed = np.random.SeedSequence([self._config.seed, self._iteration, number, batch]).generate_state(1)
            sampled = self._engine.generate([prompts[place] for place in places], int(seed[0]))
            found.update(zip(places, sampled, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _completion(self, group_id: str, sample: int, prompt: Row, completion: Completion) -> Row:
        text = self._engine.tokens.text(completion.ids)
        scored = self._rewards.score(text, len(completion.ids), {**prompt, "group_id": group_id})
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
            "policy_version": version_of(self._source),
            "reward_accuracy": scored.accuracy,
            "reward_format": scored.format,
            "reward_overlong": scored.overlong,
            **{f"reward_{name}": value for name, value in scored.plugins.items()},
        }

    def _count(self, number: int) -> None:
        for row in self._output.reopen("prompts", number, ["kept"]):
            self._totals["groups"] += 1
            self._totals["kept"] += row["kept"]
        columns = ["reward_accuracy", "reward_format", "completion_ids", "finish_reason"]
        for row in self._output.reopen("completions", number, columns):
            self._totals["completions"] += 1
            self._totals["correct"] += row["reward_accuracy"]
            self._totals["format"] += row["reward_format"]
            self._totals["tokens"] += len(row["completion_ids"])
            self._totals["cut"] += row["finish_reason"] == "length"
        self._kept = int(self._totals["kept"])

    def _figures(self, rounds: int) -> dict[str, Any]:
        totals, completions = self._totals, self._totals["completions"]
        return {
            "groups": totals["groups"],
            "kept": totals["kept"],
            "completions": completions,
            "rounds": rounds,
            "accuracy": totals["correct"] / completions,
            "format": totals["format"] / completions,
            "mean_tokens": totals["tokens"] / completions,
            "truncated": totals["cut"] / completions,
        }

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self._source, self._config)
