"""evaluate: held-out questions and a policy in, accuracy by slice out."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dapo_stages import ranks
from dapo_stages.config import Config, load_config
from dapo_stages.engines.batch_sizes import BatchSizes
from dapo_stages.engines.engine_choice import check_prompts, open_engine
from dapo_stages.errors import DataError
from dapo_stages.groups.answer_tallies import COLUMNS, Tallies
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.shards import Row, write_text
from dapo_stages.terminal.console import progress
from dapo_stages.terminal.options import ConfigFile, Data, DryRun, Json, Out, Overrides, Overwrite, PolicyPath

if TYPE_CHECKING:
    from dapo_stages.engines import Completion, Engine
    from dapo_stages.rewards.registry import Rewards
    from dapo_stages.rewards.scored import Scored

SECTIONS = (
    "model.dtype",
    "model.quantization",
    "evaluate",
    "rollout.sampler",
    "rollout.max_completion_length",
)
METRICS = "metrics.json"
SAID = (  # figures for the manifest, and for the line at the end
    "questions", "greedy_accuracy", "greedy_format", "sampled_accuracy", "sampled_format",
    "sampled_accuracy_well_formed", "blank_accuracy", "mean_tokens",
)  # fmt: skip

BlankImage = Annotated[
    bool | None,
    typer.Option(
        "--blank-image/--no-blank-image", help="Also answer with the image blanked; default: evaluate.blank_image."
    ),
]


def main(
    config_file: ConfigFile,
    policy: PolicyPath,
    data: Data,
    out: Out,
    blank_image: BlankImage = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Answer the held-out questions: greedily, with k samples, and (if configured) with the image blanked.

    metrics.json gets greedy accuracy, mean@k, pass@k, majority@k and the language-prior share, for all questions
    and by slice, each with its interval (docs/evaluation.md).

    Example: dapo-stages evaluate --config run.yaml --policy iter-0003/train/policy --data data --out iter-0003/eval
    """
    from dapo_stages.rewards.registry import Rewards

    blank = [] if blank_image is None else [f"evaluate.blank_image={str(blank_image).lower()}"]
    config = load_config(config_file, [*(set_ or []), *blank])
    inputs = {"policy": PolicyFolder(policy), "data": Source(data, "prepare-data")}
    rewards = Rewards(config.rewards, config.rollout.max_completion_length, Path.cwd(), judge=False)
    own = ("rollout.sampler",) if config.evaluate.sampler is not None else ()  # which then has no part in this
    recorded = config.sections(*(name for name in SECTIONS if name not in own)) | {"rewards": rewards.section}
    plan = Plan("evaluate", out, recorded, config.seed, inputs, rewards.names, verify=config.verify)
    carry_out.run(
        plan,
        lambda output: Evaluation(output, config, rewards).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        needs=("dapo_stages.models.policy_loading",) if config.evaluate.engine == "transformers" else (),
    )


class Evaluation:
    """Held-out questions, shard by shard."""

    def __init__(self, output: Output, config: Config, rewards: Rewards) -> None:
        self._output, self._config, self._rewards = output, config, rewards
        self._settings = config.evaluate

    def run(self) -> None:
        """Answer, then write the figures to metrics.json. Raises DataError if nothing is held out."""
        data, size = self._output.plan.inputs["data"], self._settings.questions_per_shard
        total = sum(shard.rows or 0 for shard in data.shards("held_out"))
        if not total:
            raise DataError(
                data.folder, "no held-out questions", "Run prepare-data with data.held_out_fraction above 0."
            )
        if self._settings.max_questions is not None:
            total = min(total, self._settings.max_questions)
        parts = [range(start, min(total, start + size)) for start in range(0, total, size)]
        with data.index("held_out") as table, progress("evaluate: questions", total) as advance:

            def answers(number: int) -> Iterator[Row]:
                return self._answers(number, [table[index] for index in parts[number]])

            for number in self._output.fill("completions", range(len(parts)), answers):
                advance(len(parts[number]), "")
        if ranks.rank() == 0:
            self._conclude(range(len(parts)))

    def _conclude(self, shards: range) -> None:
        from dapo_stages.groups.answer_metrics import metrics

        tallies, settings = Tallies(), self._settings
        for number in shards:
            for row in self._output.reopen("completions", number, COLUMNS):
                tallies.add(row)
            tallies.settle()
        found = metrics(
            tallies.questions,
            resamples=settings.bootstrap,
            confidence=settings.confidence,
            seed=self._config.seed,
        )
        with self._output.files() as folder:
            write_text(folder / METRICS, json_module.dumps(found, indent=1, allow_nan=False) + "\n")
        self._output.counts |= {name: found[name] for name in SAID if found[name] is not None}

    def _answers(self, number: int, questions: list[Row]) -> Iterator[Row]:
        import numpy as np

        from dapo_stages.rewards.scored import Group

        for places in self._batch_sizes.over(len(questions)):
            batch = questions[places.start : places.stop]
            seed = int(np.random.SeedSequence([self._config.seed, number, places.start]).generate_state(1)[0])
            for mode, completions in self._completions(batch, seed).items():
                texts = [[self._engine.tokens.text(one.ids) for one in group] for group in completions]
                lengths = [[len(one.ids) for one in group] for group in completions]
                reasons = [[one.finish_reason for one in group] for group in completions]
                scored = self._rewards.score(list(map(Group, batch, texts, lengths, reasons)))
                for row, group, said, rewards in zip(batch, completions, texts, scored, strict=True):
                    for sample, one in enumerate(group):
                        yield self._row(row, mode, sample, one, said[sample], rewards[sample])

    def _completions(self, questions: list[Row], seed: int) -> dict[str, list[list[Completion]]]:
        """By mode, for each question; greedy answers and samples in one call, since they share the prompt."""
        from dapo_stages.data.blanks import blanked

        settings, generate = self._settings, self._engine.generate
        found: dict[str, list[list[Completion]]] = {}
        if settings.greedy or settings.num_generations:
            seen = generate(questions, seed, settings.num_generations, greedy=settings.greedy)
            if settings.greedy:
                found["greedy"] = [group[:1] for group in seen]
            if settings.num_generations:
                found["sample"] = [group[int(settings.greedy) :] for group in seen]
        if settings.blank_image:
            found["blank"] = generate([blanked(row) for row in questions], seed, 0, greedy=True)
        return found

    def _row(self, question: Row, mode: str, sample: int, completion: Completion, text: str, scored: Scored) -> Row:
        from dapo_stages.rewards.offered_options import num_options

        return {
            "completion_id": f"{question['prompt_id']}-{mode}-{sample:03d}",
            "prompt_id": question["prompt_id"],
            "slice": question["slice"],
            "mode": mode,
            "sample": sample,
            "solution": question["solution"],
            "text": text,
            "completion_ids": completion.ids,
            "token_texts": self._engine.tokens.token_texts(completion.ids),
            "sampling_logprobs": completion.logprobs,
            "num_tokens": len(completion.ids),
            "finish_reason": completion.finish_reason,
            "policy_version": self._output.plan.policy.version,
            **scored.columns,
            "answer": scored.read.answer,
            "read_from": scored.read.place,
            "num_options": num_options(question["problem"]),
            "labels": question["labels"],
        }

    @cached_property
    def _batch_sizes(self) -> BatchSizes:
        return BatchSizes(self._settings.batch_groups, whole=self._engine.batches_itself)

    @cached_property
    def _engine(self) -> Engine:
        inputs = self._output.plan.inputs
        check_prompts(inputs["data"], "held_out", self._settings.engine)
        return open_engine(self._output.plan.policy, self._config, "evaluate")
