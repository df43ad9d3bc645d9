"""train-step: rollouts and weights in, the next policy and its optimiser state out."""

from __future__ import annotations

import math
from array import array
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages import ranks
from dapo_stages.config import Config, load_config
from dapo_stages.console import progress, say
from dapo_stages.errors import ConfigError, DataError, ModelError
from dapo_stages.manifests import Source
from dapo_stages.outputs import Output, Plan
from dapo_stages.shards import Row, RowLookup
from dapo_stages.stages import frame
from dapo_stages.stages.options import ConfigFile, DryRun, Json, Out, Overrides, Overwrite, Rollouts
from dapo_stages.stages.options import Policy as PolicyFolder
from dapo_stages.stages.policies import check_policy, is_adapter, open_policy, version_of
from dapo_stages.stages.sampled import as_sampled

if TYPE_CHECKING:
    from dapo_stages.models.batches import MiniBatch, Sample, TrainGroup
    from dapo_stages.models.packing import Prompt
    from dapo_stages.models.parallel import Worker
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.update import Trainer

_PROMPTS_KEPT = 32  # prepared pictures in memory: a group cut over micro-batches is prepared once
# Columns that are read.
_WEIGHTS = ("source", "group_id", "completion_id", "in_loss", "advantage", "importance", "token_weights")
_COMPLETIONS = ("completion_id", "completion_ids", "sampling_logprobs", "policy_version")
SECTIONS = (
    "model.dtype",
    "model.quantization",
    "train",
    "planned_iterations",
    "rollout.sampler.temperature",
    "rollout.max_completion_length",
)


def main(
    config: ConfigFile,
    policy: PolicyFolder,
    rollouts: Rollouts,
    weights: Annotated[Path, typer.Option("--weights", help="Folder written by weight-tokens.", metavar="DIR")],
    out: Out,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder inside the last train-step's output.", metavar="DIR")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Policy folder of the KL term; read if train.beta > 0.", metavar="DIR"),
    ] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Update the policy by DAPO: clipped token-level objective, each token by its weight, in mini-batches.

    Without --state the optimiser starts afresh; with it, momentum and schedule carry on. Under `accelerate launch` it
    trains in several processes (DDP, FSDP2, DeepSpeed). The rollouts may be of an older policy than --policy: each
    token then counts by a truncated importance weight (train.engine_is_cap).

    Example: dapo-stages train-step --config run.yaml --policy policy --rollouts iter-0001/rollout
    --weights iter-0001/weights --out iter-0001/train
    """
    settings = load_config(config, set_)
    inputs = {
        "policy": check_policy(Source(policy)),
        "rollouts": Source(rollouts, "rollout"),
        "weights": Source(weights, "weight-tokens"),
    }
    inputs["weights"].require_input("rollouts", inputs["rollouts"])
    settings = as_sampled(settings, inputs["rollouts"])
    if state is not None:
        inputs["state"] = Source(state, "state")
        _check_state(inputs["state"], inputs["policy"])
    if settings.train.beta > 0:
        if reference is None:
            raise ConfigError("train.beta is above 0: found no --reference; needed the policy to stay near. Pass one.")
        inputs["reference"] = check_policy(Source(reference))
    iteration = int(inputs["weights"].manifest.config["iteration"])
    section = settings.sections(*SECTIONS) | {"iteration": iteration}
    plan = Plan("train-step", out, section, settings.seed, inputs)
    frame.run(
        plan,
        lambda output: TrainStep(output, settings, iteration).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
    )


def _check_state(state: Source, policy: Source) -> None:
    """A state belongs to the policy written beside it: its moments, and its exact weights, are of no other."""
    if state.manifest.policy.get("policy_hash") != policy.manifest.content_hash:
        raise DataError(
            state.folder,
            f"the optimiser state of the policy of iteration {state.manifest.policy.get('version')}",
            f"the one written beside {policy.folder}",
            "Name the state folder beside the policy, or leave --state out to start the optimiser afresh.",
        )


class TrainStep:
    """One iteration's update."""

    def __init__(self, output: Output, config: Config, iteration: int) -> None:
        self._output, self._config, self._iteration = output, config, iteration
        self._inputs = output.plan.inputs
        self._accelerator: Any = None

    def run(self) -> None:
        """Train, then write policy, state and metrics."""
        import numpy as np
        import torch

        from dapo_stages.models.launches import among_ranks

        self._output.restart()
        seed = np.random.SeedSequence([self._config.seed, self._iteration]).generate_state(1 + ranks.rank())
        torch.manual_seed(int(seed[0]))  # what is drawn for the weights is the same everywhere
        with among_ranks(), ExitStack() as stack:
            policy, trainer = self._prepare()
            if ranks.rank() > 0:
                torch.manual_seed(int(seed[-1]))  # what is dropped out is not
            groups = self._groups(stack, policy)
            if not groups:
                say("train-step: no completion is in the loss; the policy stays as it is")
            metrics = self._train(trainer, groups)
            self._compare_engine(metrics)
            self._save(policy, trainer.worker)
        if ranks.rank() == 0:
            self._output.write("metrics", None, metrics)
        self._output.counts |= {
            "updates": len({row["update"] for row in metrics}),
            "groups": len(groups),
            "completions": sum(len(group.samples) for group in groups),
        }

    def _prepare(self) -> tuple[Policy, Trainer]:
        from dapo_stages.models.adapters import add_adapter, check_adapter
        from dapo_stages.models.launches import holds_master_weights, join, splits_weights
        from dapo_stages.models.optimizers import Optimizers, freeze
        from dapo_stages.models.policy import device_of
        from dapo_stages.models.precision import use_master_weights
        from dapo_stages.models.update import Trainer

        config, settings = self._config, self._config.train
        source = self._inputs["policy"]
        accelerator = self._accelerator = join(config.model, device_of(config.model))
        policy = open_policy(source, config.model, trainable=True)
        if not policy.shares_prefixes and splits_weights(accelerator):
            raise ModelError(
                f"{policy.architecture}: found a model whose completions are rows of their own, and a launch that "
                "splits its weights; needed a launch with whole weights. Launch with zero2 or ddp."
            )
        if not policy.shares_prefixes:
            say("train-step: this model cannot share a prompt among its completions; each is a row of its own, slower")
        if is_adapter(source):
            check_adapter(policy, settings.lora)
        elif settings.lora is not None:
            add_adapter(policy, settings.lora)
        if settings.freeze_vision:
            freeze(policy.vision.parameters())
        if settings.gradient_checkpointing:
            policy.base.gradient_checkpointing_enable({"use_reentrant": False})
            policy.base.enable_input_require_grads()
        policy.attend("grouped")
        policy.model.train()
        if not holds_master_weights(accelerator):
            use_master_weights(policy)
        trainer = Trainer(
            policy,
            settings,
            config.rollout.sampler.temperature,
            config.rollout.max_completion_length,
            Optimizers(policy.model, settings),
            accelerator,
        )
        if "state" in self._inputs:
            self._load_state(trainer.worker)
        return policy, trainer

    def _load_state(self, worker: Worker) -> None:
        from dapo_stages.models.state import load_state

        state = self._inputs["state"]
        if ranks.local_rank() == 0:  # once on every machine
            state.verify_all()
        ranks.barrier()
        try:
            load_state(worker, state.folder)
        except (ValueError, KeyError, OSError) as error:
            raise DataError(
                state.folder,
                f"an optimiser state that does not fit ({error})",
                f"one of {self._config.train.optimizer} over the weights that are trained now",
                "Leave --state out to start the optimiser afresh.",
            ) from None

    def _groups(self, stack: ExitStack, policy: Policy) -> list[TrainGroup]:
        """The groups with completions in the loss. Token lists are in memory, pictures are read when needed."""
        from dapo_stages.models.batches import TrainGroup
        from dapo_stages.models.inputs import prompt_of

        sources = {
            "fresh": (self._inputs["rollouts"], "prompts", "completions"),
            "replay": (self._inputs["weights"], "replayed-prompts", "replayed-completions"),
        }
        prompts = {
            source: stack.enter_context(folder.lookup(kind, "group_id"))
            for source, (folder, kind, _) in sources.items()
        }
        completions = {
            source: stack.enter_context(folder.lookup(kind, "completion_id", _COMPLETIONS))
            for source, (folder, _, kind) in sources.items()
        }
        image = policy.tokens.image_token_id
        sizes = {
            (source, row["group_id"]): (len(row["prompt_ids"]), image is not None and image in row["prompt_ids"])
            for source, (folder, kind, _) in sources.items()
            for row in folder.rows(kind, ("group_id", "prompt_ids"))
        }

        @lru_cache(maxsize=_PROMPTS_KEPT)
        def read(source: str, group_id: str) -> Prompt:
            return prompt_of(prompts[source].one(group_id), policy.processor)

        groups: dict[tuple[str, str], TrainGroup] = {}
        for row in self._inputs["weights"].rows("weights", _WEIGHTS):
            if row["in_loss"]:
                key = source, group_id = row["source"], row["group_id"]
                if key not in sizes:
                    found = f"weights of group {group_id} ({source}), whose prompt is not there"
                    where = self._inputs["weights"].folder
                    raise DataError(where, found, "weights of these rollouts", "Run weight-tokens again.")
                if key not in groups:
                    prompt = partial(read, source, group_id)
                    groups[key] = TrainGroup(group_id, prompt, [], *sizes[key])
                groups[key].samples.append(self._sample(row, completions[source]))
        return list(groups.values())

    def _sample(self, row: Row, completions: RowLookup) -> Sample:
        """A completion in arrays: as Python lists those of a whole iteration would take eight times the memory."""
        from dapo_stages.models.batches import Sample

        folder = self._inputs["weights"].folder
        if row["completion_id"] not in completions:
            found = f"weights of completion {row['completion_id']}, which is not in the rollouts"
            raise DataError(folder, found, "weights of these rollouts", "Run weight-tokens again.")
        completion = completions.one(row["completion_id"])
        ids, weights = completion["completion_ids"], row["token_weights"]
        if len(ids) != len(weights):
            found = f"{len(weights)} weights for the {len(ids)} tokens of {row['completion_id']}"
            raise DataError(folder, found, "one per token", "Run weight-tokens again.")
        sampling = array("f", completion["sampling_logprobs"])
        lag = version_of(self._inputs["policy"]) - completion["policy_version"]
        advantage = row["advantage"] * (1.0 if row["importance"] is None else row["importance"])
        return Sample(array("i", ids), sampling, array("f", weights), advantage, lag)

    def _train(self, trainer: Trainer, groups: list[TrainGroup]) -> list[Row]:
        from dapo_stages.maths.schedule import learning_rate_factor, mini_batches
        from dapo_stages.models.batches import mini_batch

        config, settings = self._config, self._config.train
        sizes = [len(group.samples) for group in groups]
        parts = mini_batches(sizes, settings.updates_per_iteration, config.seed, self._iteration) if groups else []
        work = [
            mini_batch(
                [groups[i] for i in part],
                settings.batch_completions,
                ranks=trainer.worker.ranks,
                rank=trainer.worker.rank,
                chunk=settings.logprob_chunk,
            )
            for part in parts
        ]
        total = config.planned_iterations * settings.updates_per_iteration
        first = (self._iteration - 1) * settings.updates_per_iteration
        self._recall(trainer, work)
        rows: list[Row] = []
        with progress("train-step: updates", len(work)) as advance:
            for update, (part, batch) in enumerate(zip(parts, work, strict=True)):
                factor = learning_rate_factor(first + update, total, settings.warmup_fraction, settings.schedule)
                metrics = trainer.update(batch, factor) | {"policy_lag": _mean_lag([groups[i] for i in part])}
                if metrics["skipped"]:
                    say(f"train-step: update {update} skipped, its loss or gradient is not finite")
                rows += [
                    {"iteration": self._iteration, "update": update, "name": name, "value": _finite(value)}
                    for name, value in metrics.items()
                ]
                advance(1, f"loss {metrics['loss']:.4f}, gradient {metrics['grad_norm']:.3f}")
        return rows

    def _compare_engine(self, metrics: list[Row]) -> None:
        """Warn where the engine sampled from another distribution than the one that is trained."""
        updates: dict[int, dict[str, float]] = {}
        for row in metrics:
            updates.setdefault(row["update"], {})[row["name"]] = row["value"]
        compared = [found for found in updates.values() if found["engine_diff_mean"] is not None]
        tokens = sum(found["engine_tokens"] for found in compared)
        if not tokens:
            return
        mean = sum(found["engine_diff_mean"] * found["engine_tokens"] for found in compared) / tokens
        self._output.counts["engine_diff"] = mean
        limit = self._config.engines.diff_warn
        if not mean <= limit:
            say(
                f"train-step: log-probs of engine and trainer differ by {mean:.3g} on average, more than "
                f"engines.diff_warn={limit:g}. The importance weight corrects for it up to train.engine_is_cap; better "
                "let the engine sample from this very policy, with the same model.dtype and pictures, without top_p, "
                "top_k, min_p and penalties, and give log-probs of what it sampled from."
            )

    def _recall(self, trainer: Trainer, work: list[MiniBatch]) -> None:
        """Log-probs of the policy as it is before the first update, for all that is trained on after it.

        The first mini-batch needs none: its new log-probs are the old ones.
        """
        later = [batch for part in work[1:] for batch in part.batches]
        everything = [batch for part in work for batch in part.batches]
        reference = None
        if self._config.train.beta > 0:
            reference = self._reference()
        with progress("train-step: old log-probs", len(later)) as advance:
            for batch in later:
                batch.old = trainer.logprobs(batch)
                advance(1, "")
        if reference is not None:
            for batch in everything:
                batch.reference = reference.logprobs(batch)

    def _reference(self) -> Trainer:
        """Whole on every rank: each computes its own micro-batches, without the others."""
        from dapo_stages.models.launches import whole_models
        from dapo_stages.models.optimizers import Optimizers, freeze
        from dapo_stages.models.update import Trainer

        config = self._config
        with whole_models(self._accelerator):
            policy = open_policy(self._inputs["reference"], config.model)
        policy.attend("grouped")
        freeze(policy.model.parameters())
        return Trainer(
            policy,
            config.train,
            config.rollout.sampler.temperature,
            config.rollout.max_completion_length,
            Optimizers(policy.model, config.train),
        )

    def _save(self, policy: Policy, worker: Worker) -> None:
        """The ranks write the state together; the policy and all manifests are of rank 0."""
        import os

        from dapo_stages.models.policy import save_policy
        from dapo_stages.models.state import save_state

        source = self._inputs["policy"]
        about = {"version": self._iteration, "model": self._config.model.name}
        folder, state = self._output.folder / "policy", self._output.folder / "state"
        weights = worker.weights()
        self._output.add_files(*(f"state/{name}" for name in save_state(worker, state)))
        self._output.share()
        if worker.rank != 0:
            return
        save_policy(policy, folder, weights)
        self._output.add_files("policy")
        if policy.is_adapter:
            base = source.folder / source.manifest.policy["base"] if "base" in source.manifest.policy else source.folder
            about["base"] = os.path.relpath(base.resolve(), (self._output.plan.out / "policy").resolve())
        manifest = self._output.publish_part("policy", about)
        self._output.publish_part("state", about | {"policy_hash": manifest.content_hash})
        self._output.policy = about | {"content_hash": manifest.content_hash}


def _mean_lag(groups: list[TrainGroup]) -> float:
    """Train-steps between sampling and training, mean over completions: 0 on-policy, more with `lag` and replay."""
    lags = [sample.lag for group in groups for sample in group.samples]
    return sum(lags) / len(lags)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
