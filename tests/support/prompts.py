"""Prompts of real shape for tests: chat text with images of different sizes, tokenized by the processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dapo_stages.data.chat import SYSTEM_PROMPT, messages
from dapo_stages.models.inputs import prompt_from
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Prompt


def image(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


def prompt(policy: Policy, problem: str, sizes: list[tuple[int, int]], system: str | None = SYSTEM_PROMPT) -> Prompt:
    """A prompt with one noise image per size (width, height)."""
    images = [image(w, h, seed) for seed, (w, h) in enumerate(sizes)]
    text = policy.processor.apply_chat_template(messages(problem, len(sizes), system), add_generation_prompt=True)
    inputs = policy.processor(text=[text], images=images or None, return_tensors="pt")
    return prompt_from(inputs)


def own_row(policy: Policy, prompt: Prompt, completion: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """One completion in a row of its own, as transformers' forward and generate take it."""
    ids = torch.cat([prompt.ids, torch.tensor(completion, dtype=torch.long)])[None]
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, value in prompt.inputs.items():
        told = name.endswith("token_type_ids")  # of each token; a completion is text
        row[name] = torch.cat([value, value.new_zeros(1, len(completion))], 1) if told else value
    if policy.base.config.model_type.startswith("qwen"):
        row["mm_token_type_ids"] = (ids == policy.image_token_id).int()
    return row


def groups(policy: Policy) -> list[Group]:
    """Three groups: one image, two images of different size, none; completions of unequal length."""
    generator = torch.Generator().manual_seed(7)

    def completions(*lengths: int) -> list[list[int]]:
        return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]

    return [
        Group(prompt(policy, "What colour is the circle?", [(84, 56)]), completions(5, 1, 9, 3)),
        Group(prompt(policy, "Which is larger, <image> or <image>?", [(56, 112), (140, 84)]), completions(2, 7)),
        Group(prompt(policy, "No image here.", []), completions(4, 4, 6)),
    ]
