"""TRL's GRPOTrainer at its best settings on a CPU, and batches as it prepares them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Prompt

Reward = Callable[..., list[float]]


def trainer(
    policy: Policy,
    *,
    batch: int,
    accumulation: int,
    max_length: int,
    generations: int = 8,
    rows: Sequence[dict[str, Any]] | None = None,
    reward: Reward | None = None,
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> Any:
    """A GRPOTrainer over the policy's own model: DAPO's loss, SDPA, no checkpointing, no KL, nothing logged to disk.

    `batch` completions go through the model at a time, `accumulation` of these make an optimizer step.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    set_verbosity_error()
    disable_progress_bar()
    policy.attend("separate")
    folder = Path(tempfile.gettempdir()) / "bench-trl"  # named by every trainer, and nothing is written to it
    common: dict[str, Any] = {"learning_rate": 1e-5, "lr_scheduler_type": "constant", "temperature": 1.0}
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_generations=generations,
        max_completion_length=max_length,
        loss_type="dapo",
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **(common | settings),
    )
    made = GRPOTrainer(
        model=policy.model,
        reward_funcs=[reward or _nothing],
        args=args,
        train_dataset=Dataset.from_list(list(rows or [{"prompt": [{"role": "user", "content": "-"}]}])),
        processing_class=policy.processor,
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)  # what stands in for the progress bar prints every metric
    return made


def updater(policy: Policy, *, batch: int, accumulation: int, max_length: int, **settings: Any) -> Any:
    """The same with an optimizer, ready for `update` on prepared batches."""
    made = trainer(policy, batch=batch, accumulation=accumulation, max_length=max_length, **settings)
    made.create_optimizer()
    made.current_gradient_accumulation_steps = accumulation
    made._prepare_inputs = lambda inputs: inputs  # completions are given, none are generated
    made.model.train()
    return made


def accumulate(made: Any, batches: Sequence[dict[str, Any]]) -> None:
    """TRL's own training step on each micro-batch: forward, loss, metrics, backward; gradients clipped at the end."""
    for batch in batches:
        made.training_step(made.model, batch, None)
    made.accelerator.clip_grad_norm_(made.model.parameters(), 1.0)


def update(made: Any, batches: Sequence[dict[str, Any]]) -> None:
    """One optimizer step of TRL on prepared micro-batches."""
    accumulate(made, batches)
    made.optimizer.step()
    made.model.zero_grad()


def prepared(
    policy: Policy, micro_batches: Sequence[Sequence[Group]], advantages: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Micro-batches as `_generate_and_score_completions` leaves them: prompts repeated for every completion."""
    tokens = sum(len(c) for groups in micro_batches for g in groups for c in g.completions)
    found = []
    for groups, values in zip(micro_batches, advantages, strict=True):
        batch = rows_of(policy, groups)
        completion_ids, completion_mask = _pad([torch.tensor(c) for g in groups for c in g.completions], "right")
        prompt_ids, prompt_mask = batch.pop("input_ids"), batch.pop("attention_mask")
        kinds = torch.cat([batch.pop("mm_token_type_ids"), torch.zeros_like(completion_ids, dtype=torch.int32)], 1)
        found.append(
            batch
            | {
                "prompt_ids": prompt_ids,
                "prompt_mask": prompt_mask,
                "completion_ids": completion_ids,
                "completion_mask": completion_mask,
                "mm_token_type_ids": kinds,
                "advantages": torch.tensor(values),
                "num_items_in_batch": torch.tensor(tokens),
                "num_images": [1] * len(prompt_ids),
            }
        )
    return found


def rows_of(policy: Policy, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
    """Model inputs of the prompts, each repeated for all its completions, padded on the left."""
    prompts: list[Prompt] = [g.prompt for g in groups for _ in g.completions]
    ids, mask = _pad([p.ids for p in prompts], "left")
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == policy.image_token_id).int(),
        "pixel_values": torch.cat([p.pixel_values for p in prompts if p.pixel_values is not None]),
        "image_grid_thw": torch.cat([p.image_grid_thw for p in prompts if p.image_grid_thw is not None]),
    }


def logprobs(made: Any, batch: dict[str, Any]) -> torch.Tensor:
    """TRL's logprobs of a prepared micro-batch's completion tokens, [sum C], without gradient."""
    mask = batch["completion_mask"].bool()
    with torch.no_grad():
        found, _, _ = made._get_per_token_logps_and_entropies(
            made.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            mask.shape[1],
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            num_images=batch["num_images"],
            mm_token_type_ids=batch["mm_token_type_ids"],
        )
    picked: torch.Tensor = found[mask]
    return picked


def _pad(rows: Sequence[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one block padded with zeros, and its mask."""
    from torch.nn.utils.rnn import pad_sequence

    block = pad_sequence(list(rows), batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return block, mask


def _nothing(completions: list[Any], **_: Any) -> list[float]:
    """A reward that says nothing, for a trainer that is given its advantages."""
    return [0.0] * len(completions)
