"""Supervised steps: cross-entropy of completions given prompts with images, in the packed rows of train-step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dapo_stages.config import Config, TrainConfig
from dapo_stages.data.control import MARK, ControlTokens, plain_twin
from dapo_stages.data.examples import Example, Examples
from dapo_stages.errors import DataError, HaltedError
from dapo_stages.maths.schedule import learning_rate_factor, prompts_of
from dapo_stages.models.checkpointing import keep_activations
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.precision import use_master_weights
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.training.batches import MiniBatch, Sample, TrainGroup, mini_batch
from dapo_stages.training.launching.rank_workers import Worker
from dapo_stages.training.optimizers import Optimizers, make_ready

Progress = Callable[[int, str], None]
_LAST = 5  # steps whose mean loss is the last one


def learnable(examples: Examples, policy: Policy, longest: int, *, plain_tags: bool = False) -> list[TrainGroup]:
    """Each example as a group of one completion, ended by the end token; in float32, its advantage is 1.

    What could not be sampled is left out and counted: completions of more than `longest` tokens, and those with special
    tokens. With `plain_tags`, tags are tokenized as text (data.tags). Raises DataError if nothing is left.
    """
    tokenizer, end = policy.processor.tokenizer, _end_id(policy)
    control = ControlTokens(policy.processor)
    unsaid = policy.tokens.suppressed_ids | set(policy.end_ids)
    groups = []
    for example in examples.found:
        text = control.plain_tags(example.completion) if plain_tags else example.completion
        encode = plain_twin(policy.processor).tokenizer if MARK in text else tokenizer
        ids = [*encode(text, add_special_tokens=False)["input_ids"], end]
        where = example.prompt["prompt_id"]
        if len(ids) > longest:
            examples.drop("long", f"{where}: a completion of {len(ids)} tokens, more than {longest}")
        elif unsaid & set(ids[:-1]):
            examples.drop("control", f"{where}: its completion contains special tokens")
        else:
            size = len(example.prompt["prompt_ids"])
            sample = Sample(ids, [0.0] * len(ids), [1.0] * len(ids), 1.0)
            read = partial(_prompt, examples, example, policy.processor)
            groups.append(TrainGroup(where, read, [sample], size, has_images=bool(example.places)))
    if not groups:
        problem = f"no completion can be learned ({examples.first_dropped})"
        raise DataError("sft.completion", problem, "Shorten the template, or raise rollout.max_completion_length.")
    return groups


def supervise(policy: Policy, groups: Sequence[TrainGroup], config: Config, progress: Progress) -> dict[str, float]:
    """Train `policy` in place on the completions of `groups`; returns steps, tokens, first and last loss, and seconds.

    The loss is the mean over the step's tokens of -log π(token), in nats, under the distribution at temperature 1 that
    completions are sampled from. Only the adapter of an adapted policy is trained. Raises HaltedError if a loss or
    gradient is not finite.
    """
    assert config.sft is not None
    settings, sft = config.train, config.sft
    started = time.monotonic()
    make_ready(policy, settings)
    use_master_weights(policy.model.parameters())
    worker = _worker(policy, settings, config)
    losses: list[float] = []
    tokens = 0
    for step in range(sft.steps):
        chosen = prompts_of(len(groups), config.seed, step + 1, 0, sft.batch_size)
        batch = mini_batch([groups[i] for i in chosen], config.micro_batch, chunk=settings.logprob_chunk)
        factor = learning_rate_factor(step, sft.steps, sft.warmup_fraction, "cosine")
        losses.append(_step(policy, worker, batch, factor, step + 1))
        tokens += batch.tokens
        progress(1, f"loss {losses[-1]:.3f}")
    if settings.gradient_checkpointing:
        keep_activations(policy.base)
    policy.model.eval()
    return {
        "sft_steps": sft.steps,
        "sft_tokens": tokens,
        "sft_loss_first": losses[0],
        "sft_loss_last": sum(losses[-_LAST:]) / len(losses[-_LAST:]),
        "sft_seconds": time.monotonic() - started,
    }


def _worker(policy: Policy, settings: TrainConfig, config: Config) -> Worker:
    assert config.sft is not None
    rates = {"learning_rate": config.sft.learning_rate, "muon_learning_rate": config.sft.muon_learning_rate}
    optimizers = Optimizers(policy.model, settings.model_copy(update=rates))
    forward = GroupLogprobs(policy, 1.0, settings.logprob_chunk, exact_head=settings.logprob_dtype == "float32")
    return Worker(forward, optimizers, settings)


def _step(policy: Policy, worker: Worker, batch: MiniBatch, factor: float, step: int) -> float:
    """One optimizer step; returns the mean loss of its tokens."""
    total = 0.0
    for number, part in enumerate(batch.batches, start=1):
        with worker.pass_(last=number == len(batch.batches)):
            rows = policy.batch([Group(group.prompt(), [s.ids for s in group.samples]) for group in part.groups])
            loss = -worker.forward(rows, part.chunks)[0].sum() / batch.tokens
            worker.backward(loss)
            total += float(loss.detach())
    done = worker.step(factor, healthy=math.isfinite(total))
    if not done.applied:
        problem = f"the loss is {total:g}, the norm of the gradient {done.norm:g}"
        raise HaltedError(f"supervised step {step}", problem, "Lower sft.learning_rate.")
    return total


def _prompt(examples: Examples, example: Example, processor: Any) -> Any:
    return prompt_of(examples.prompt_row(example), processor)


def _end_id(policy: Policy) -> int:
    own = policy.processor.tokenizer.eos_token_id
    return int(own) if own in policy.end_ids else policy.end_ids[0]
