"""train-step: rollouts and weights in, the next policy and its optimizer state out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages import ranks
from dapo_stages.config import Config, load_config
from dapo_stages.errors import DataError, HaltedError
from dapo_stages.groups.sampled_groups import as_sampled
from dapo_stages.handoff import behind, carry_out, kept
from dapo_stages.handoff.manifests import STATE, Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PROMPTING, PolicyFolder
from dapo_stages.handoff.shards import Row, writing
from dapo_stages.handoff.state_folders import StateFolder
from dapo_stages.processes import collectives
from dapo_stages.terminal.console import progress, say
from dapo_stages.terminal.options import ConfigFile, DryRun, Json, Out, Overrides, Overwrite, PolicyPath, Rollouts
from dapo_stages.training.halting import Guard
from dapo_stages.training.loss_file import KEY as LOSS_TYPE
from dapo_stages.training.loss_file import LossFile, loss_file
from dapo_stages.training.references import (
    NAME,
    check_reference,
    is_due,
    open_reference,
    reference_of,
    require_alike,
    write_reference,
)
from dapo_stages.training.train_groups import data_metrics, engine_difference, group_metrics, read_groups

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy
    from dapo_stages.training.batches import TrainGroup
    from dapo_stages.training.kept_states import Kept
    from dapo_stages.training.launching.rank_workers import Worker
    from dapo_stages.training.update import Trainer

SECTIONS = (
    "model.dtype",
    "model.quantization",
    "train",
    "planned_iterations",
    "rollout.sampler.temperature",
    "rollout.max_completion_length",
)


def main(
    config_file: ConfigFile,
    policy: PolicyPath,
    rollouts: Rollouts,
    weights: Annotated[Path, typer.Option("--weights", help="Folder written by weight-tokens.", metavar="DIR")],
    out: Out,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder in the previous train-step's output.", metavar="DIR")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Policy folder for the KL term; read if train.beta > 0.", metavar="DIR"),
    ] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Update the policy by DAPO: clipped token-level objective, each token times its weight, in mini-batches.

    Without --state the optimizer starts over; with it, momentum and schedule continue. Under `accelerate launch` it
    trains in several processes (DDP, FSDP2, DeepSpeed). The rollouts may be of an older policy than --policy: each
    token is then multiplied by a truncated importance weight (train.engine_is_cap). With train.beta and
    train.reference_update_every, some outputs have a folder `reference`: pass it as --reference from then on.

    Example: dapo-stages train-step --config run.yaml --policy policy --rollouts iter-0001/rollout
    --weights iter-0001/weights --out iter-0001/train
    """
    if kept.keeps():
        collectives.join()  # a rank whose writing failed ends the waiting of the others
    behind.finish()  # the state of the train-step before
    config = load_config(config_file, set_)
    start = PolicyFolder(policy)
    inputs: dict[str, Source] = {
        "policy": start,
        "rollouts": Source(rollouts, "rollout"),
        "weights": Source(weights, "weight-tokens"),
    }
    inputs["weights"].require_input("rollouts", inputs["rollouts"])
    sampler = inputs["rollouts"].manifest.inputs.get("policy")
    if sampler is not None and sampler.content_hash in start.manifest.replaces:
        say("train-step: the policy that sampled was lost, and trained again it is another; importance weights correct")
    config = as_sampled(config, inputs["rollouts"])
    before = None
    if state is not None:
        inputs[STATE] = before = StateFolder(state, start)
    inputs |= check_reference(reference, config)
    iteration = int(inputs["weights"].manifest.config["iteration"])
    recorded = config.sections(*SECTIONS) | {"iteration": iteration}
    loss = loss_file(config)
    if loss is not None:  # an edited loss is another loss
        recorded["files"] = {LOSS_TYPE: sha256(loss.content).hexdigest()}
    is_kept = _keeps(out, before, is_written=_is_written(config, iteration), dry_run=dry_run)
    beside = () if is_kept else (STATE,)
    plan = Plan("train-step", out, recorded, config.seed, inputs, (), config.verify, beside, starts_over=True)
    if before is not None and plan.state() != "complete":
        before.require()
    carry_out.run(
        plan,
        lambda output: TrainStep(output, config, iteration, loss).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        needs=("dapo_stages.models.policy_loading",),
    )


def _is_written(config: Config, iteration: int) -> bool:
    """Whether a process that could keep the state of an iteration writes it nevertheless."""
    return iteration % config.keep.state_every == 0


def _keeps(out: Path, before: StateFolder | None, *, is_written: bool, dry_run: bool) -> bool:
    """Whether this process keeps the state that belongs to `out`, and need not write it.

    Another state that it keeps is written now, unless it is the one to resume from.
    """
    if not kept.keeps():
        return False
    from dapo_stages.training.kept_states import owner, write_unwritten

    own = None if is_written else owner(out)
    stays = {*([before.manifest.content_hash] if before is not None else []), *([own] if own is not None else [])}
    if not dry_run:
        write_unwritten(but=stays)
    return own is not None


class TrainStep:
    """One iteration's update."""

    def __init__(self, output: Output, config: Config, iteration: int, loss: LossFile | None = None) -> None:
        self._output, self._config, self._iteration, self._loss = output, config, iteration, loss
        self._inputs = output.plan.inputs
        self._accelerator: Any = None
        self._guard = Guard(output, config.train.guard)
        self._metrics: list[Row] = []

    def run(self) -> None:
        """Train, then write policy, state and metrics. Raises HaltedError if training has blown up."""
        try:
            self._run()
        except HaltedError as error:
            if ranks.rank() == 0:
                self._output.halt(str(error), "metrics", self._metrics)
            raise

    def _run(self) -> None:
        import numpy as np
        import torch

        from dapo_stages.training.launching.frameworks import among_ranks, leave

        self._output.restart()
        if self._loss is not None and ranks.rank() == 0:
            self._output.add_copies({LOSS_TYPE: self._loss.content})
        self._guard.check_rollouts()
        seed = np.random.SeedSequence([self._config.seed, self._iteration]).generate_state(1 + ranks.rank())
        torch.manual_seed(int(seed[0]))  # all ranks initialize weights alike
        with among_ranks(), ExitStack() as stack:
            policy, trainer = self._prepare()
            if ranks.rank() > 0:
                torch.manual_seed(int(seed[-1]))  # but draw different dropout
            groups = read_groups(stack, self._output.plan, policy, self._changes(policy, stack))
            if not groups:
                say("train-step: no completion is in the loss; the policy stays as it is")
            self._guard.check_signal(len(groups))
            self._train(policy, trainer, groups)
            self._guard.check_weights(trainer.worker)
            if (difference := engine_difference(self._metrics, self._config.engines.diff_warn)) is not None:
                self._output.counts["engine_diff"] = difference
            self._output.counts |= self._guard.counts() | trainer.coefficients.counts()
            with writing(self._output.folder):
                self._save(policy, trainer.worker)
            if kept.keeps():  # other commands follow in this process
                leave(self._accelerator)
        if ranks.rank() == 0:
            self._output.write("metrics", None, self._metrics)
        self._output.counts |= {
            "updates": len({row["update"] for row in self._metrics}),
            "groups": len(groups),
            "completions": sum(len(group.samples) for group in groups),
        }

    def _prepare(self) -> tuple[Policy, Trainer]:
        from dapo_stages.models.adapters import add_adapter, check_adapter, check_targets
        from dapo_stages.models.checkpoints import empty_model
        from dapo_stages.models.policy_loading import device_of, open_policy
        from dapo_stages.models.precision import use_master_weights
        from dapo_stages.models.requirements import require_whole_rows
        from dapo_stages.training.coefficients import Coefficients
        from dapo_stages.training.launching.frameworks import join, makes_master_weights, splits_weights
        from dapo_stages.training.optimizers import Optimizers, make_ready
        from dapo_stages.training.update import Trainer, loss_settings

        config, settings = self._config, self._config.train
        source = self._output.plan.policy
        if self._loss is not None:
            self._loss.register(loss_settings(settings))
        if settings.lora is not None:
            check_targets(empty_model(source.checkpoint()), settings.lora)
        accelerator = self._accelerator = join(config.model, device_of(config.model))
        if is_due(settings, self._iteration):
            require_alike(source, reference_of(self._inputs))
        policy = open_policy(source, config.model, trainable=True)
        require_whole_rows(policy.architecture, splits=splits_weights(accelerator))
        if not policy.shares_prefixes:
            say("train-step: this model cannot share a prompt among its completions; one row for each, which is slower")
        if source.is_adapter:
            check_adapter(policy, settings.lora)
        elif settings.lora is not None:
            add_adapter(policy, settings.lora)
        make_ready(policy, settings)
        if not makes_master_weights(accelerator):
            use_master_weights(policy.model.parameters())
        before = self._inputs[STATE].manifest.counts.get("coefficients") if STATE in self._inputs else None
        trainer = Trainer(
            policy,
            settings,
            config.rollout.sampler.temperature,
            config.rollout.max_completion_length,
            Optimizers(policy.model, settings),
            accelerator,
            Coefficients(settings, before),
        )
        if STATE in self._inputs:
            self._load_state(trainer.worker)
        return policy, trainer

    def _changes(self, policy: Policy, stack: ExitStack) -> tuple[Callable[[Row], Row], ...]:
        """What makes the views of a perception term."""
        from dapo_stages.training.views import changes_of

        return changes_of(self._config.train.perception, self._config.seed, self._inputs["rollouts"], policy, stack)

    def _load_state(self, worker: Worker) -> None:
        from safetensors import SafetensorError

        from dapo_stages.training.kept_states import resume

        state = self._inputs[STATE]
        assert isinstance(state, StateFolder)
        if ranks.local_rank() == 0:  # once on every machine
            state.verify_all()
        collectives.barrier()
        try:
            resume(worker, state)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise DataError(
                state.folder,
                f"this state does not fit {self._config.train.optimizer} over the weights trained now ({error})",
                "Leave --state out to start the optimizer over.",
            ) from None

    def _train(self, policy: Policy, trainer: Trainer, groups: list[TrainGroup]) -> None:
        from dapo_stages.maths.schedule import learning_rate_factor, mini_batches, order_of_pass
        from dapo_stages.planning.micro_batches import micro_batch_size
        from dapo_stages.training.batches import mini_batch
        from dapo_stages.training.old_logprobs import recall

        config, settings = self._config, self._config.train
        sizes = [len(group.samples) for group in groups]
        parts = mini_batches(sizes, settings.updates_per_iteration, config.seed, self._iteration) if groups else []
        ranks, groups_at_once = trainer.worker.ranks, max(map(len, parts), default=1)
        size = micro_batch_size(config, policy, self._accelerator, ranks, groups_at_once)
        if settings.batch_completions == "auto":
            self._output.counts["batch_completions"] = size
        work = [
            mini_batch(
                [groups[i] for i in part],
                size,
                ranks=ranks,
                rank=trainer.worker.rank,
                chunk=settings.logprob_chunk,
            )
            for part in parts
        ]
        passes = range(settings.passes)
        order = [i for number in passes for i in order_of_pass(len(work), config.seed, self._iteration, number)]
        updates = settings.updates_per_iteration * settings.passes
        total, first = config.planned_iterations * updates, (self._iteration - 1) * updates
        reference = open_reference(reference_of(self._inputs), config) if NAME in self._inputs else None
        recall(trainer, work, settings, reference)
        of_iteration = data_metrics(self._inputs)
        with progress("train-step: updates", len(order)) as advance:
            for update, (part, batch) in enumerate((parts[i], work[i]) for i in order):
                factor = learning_rate_factor(first + update, total, settings.warmup_fraction, settings.schedule)
                metrics = trainer.update(batch, factor) | group_metrics([groups[i] for i in part]) | of_iteration
                self._metrics += [
                    {"iteration": self._iteration, "update": update, "name": name, "value": _finite(value)}
                    for name, value in metrics.items()
                ]
                self._guard.judge(update, metrics, trainer.worker)
                advance(1, f"loss {metrics['loss']:.4f}, gradient {metrics['grad_norm']:.3f}")

    def _save(self, policy: Policy, worker: Worker) -> None:
        """All ranks write the state together; rank 0 writes the policy and all manifests.

        Processes that stay write the state once the rest is published, while other commands run, or only later.
        """
        from dapo_stages.models.policy_loading import save_policy
        from dapo_stages.training.kept_states import state_of
        from dapo_stages.training.state import save_state

        about = {"version": self._iteration, "model": self._config.model.name}
        folder, state = self._output.folder / "policy", self._output.folder / STATE
        weights = worker.weights()
        held = state_of(worker) if kept.keeps() else None  # now: a policy that is kept has its weights rounded
        if held is None:
            self._output.add_files(*(f"{STATE}/{name}" for name in save_state(worker, state)))  # hashed from now on
        if worker.rank == 0:
            save_policy(policy, folder, weights)
            self._output.add_files("policy")
        self._output.share()
        about_state = self._publish(policy, folder, about) if worker.rank == 0 else {}
        if held is not None:
            self._leave(held, about_state, is_due=worker.ranks > 1 or _is_written(self._config, self._iteration))

    def _leave(self, state: Kept, about: dict[str, Any], *, is_due: bool) -> None:
        """Write the state behind, and keep it; or only keep it, if it is not due."""
        from dapo_stages.training.kept_states import Unwritten, keep_unwritten, write

        place = (self._output.plan.out / STATE).absolute()  # this process will have another folder then
        own = replace(self._output.plan, stage=STATE, out=place, beside=())
        unwritten = Unwritten(own, about, dict(self._output.counts))
        if is_due:
            self._output.behind = partial(write, unwritten, state, collectives.Meeting())
        else:
            self._output.behind = partial(keep_unwritten, unwritten, state)

    def _publish(self, policy: Policy, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
        """By rank 0: manifests of the parts, and the reference if it is due. Returns what the state's says of it."""
        import os

        from dapo_stages.models.kept_policies import keep_trained

        source = self._output.plan.policy
        prompting = self._inputs["rollouts"].manifest.counts.get(PROMPTING)
        if policy.is_adapter:
            base = source.folder / source.manifest.policy["base"] if "base" in source.manifest.policy else source.folder
            about["base"] = os.path.relpath(base.resolve(), (self._output.plan.out / "policy").resolve())
        manifest = self._output.publish_part("policy", about | ({PROMPTING: prompting} if prompting else {}))
        about_state = about | {"policy_hash": manifest.content_hash}
        if not kept.keeps():
            self._output.publish_part(STATE, about_state)
        self._output.policy = about | {"content_hash": manifest.content_hash}
        if is_due(self._config.train, self._iteration):
            alpha = self._config.train.reference_mixup_alpha
            say(f"train-step: moving the reference toward the policy, by {alpha:g}")
            write_reference(self._output, folder, adapter=policy.is_adapter, alpha=alpha)
            self._output.publish_part(NAME, {key: about[key] for key in ("version", "model")})
        keep_trained(policy, self._config.model, source.manifest, manifest)
        return about_state


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
